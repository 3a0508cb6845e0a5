"""What networks are exported as: ONNX, a folder for timm, and the model card beside them."""
