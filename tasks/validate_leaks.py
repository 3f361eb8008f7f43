"""Stage validate-leaks: proves that no prompt has two uses, and writes the page on all kinds.

What trains depends on this stage's metrics file. It holds the proof alone, so that comparisons added later,
which leave the proof as it is, re-run nothing that does not read them.
"""

from __future__ import annotations

from pathlib import Path

from prefloop.config.validate import ValidateConfig
from prefloop.data.records import KINDS
from prefloop.data.validation.leaks import find_leaks
from prefloop.data.validation.page import render_page
from prefloop.files import read_json
from tasks.support.stage import Stage


def main() -> None:
    with Stage.open("validate-leaks", ValidateConfig, section="validate") as stage:
        leaks = find_leaks(Path("data/validated"), stage.config, stage.scratch)
        kinds = [read_json(f"reports/validation/{kind}.json") for kind in KINDS]
        with stage.output_file("reports/validation.html") as page:
            page.write(render_page(kinds, leaks))
        stage.metrics({"shared_prompts": {f"{o.left}/{o.right}": o.prompts for o in leaks.exact}})
        counts = ", ".join(f"{prompts} prompts for {use}" for use, prompts in leaks.prompts.items())
        stage.say(f"{counts}: {leaks.shared or 'none'} shared")


if __name__ == "__main__":
    main()
