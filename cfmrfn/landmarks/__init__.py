"""The landmark backbone: learnt from drawn faces, and measured on them and on photographs."""
