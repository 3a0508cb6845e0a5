"""Configuration: dataclasses, recipes in YAML, and the command line made from both."""

from cfmrfn.config.options import (
    Config,
    ImageConfig,
    LayoutName,
    NetworkConfig,
    OptimConfig,
    RunConfig,
)
from cfmrfn.config.reading import (
    continued,
    from_mapping,
    from_yaml,
    parse,
    parse_config,
    read_recipe,
    recipe_of,
    recipes,
    run_folder_of,
)

__all__ = [
    "Config",
    "ImageConfig",
    "LayoutName",
    "NetworkConfig",
    "OptimConfig",
    "RunConfig",
    "continued",
    "from_mapping",
    "from_yaml",
    "parse",
    "parse_config",
    "read_recipe",
    "recipe_of",
    "recipes",
    "run_folder_of",
]
