"""`recipe_vs_fit.py` with the recipes of recipes/: seconds from the start of a program until a
model is saved whose validation accuracy is at least what `fit` ends with, that plus 2 points, or
--target.

    python benchmarks/time_to_accuracy.py --runs=DIR --data_dir=PHOTOS --output_json=DIR/rows.json
    --figure=DIR/figure.png
"""

import program
import recipe_vs_fit

from tl_research.settings import setting


class Settings(recipe_vs_fit.Settings):
    """The flags of `recipe_vs_fit.py`, with other defaults."""

    backbones: str = setting("EfficientNetLite0@224", "NAME@SIZE, a list")
    recipes: tuple[str, ...] = setting(
        ("instant", "minute", "flowers"),
        "names in recipes/, put after flowers.flags; flowers is that alone",
    )
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "of the run and of the split")


if __name__ == "__main__":
    program.main(Settings, recipe_vs_fit.report)
