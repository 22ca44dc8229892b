"""What the command line can do, one function each: flags come from the signatures, help from the docstrings.

Nothing here imports torch before a command that needs it runs.
"""

from collections.abc import Callable

from mimkit.commands.files import export, import_
from mimkit.commands.measuring import bench
from mimkit.commands.packing import pack
from mimkit.commands.training import demo, pretrain, recipes, resume
from mimkit.commands.using import embed, probe, reconstruct, report

COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "recipes": recipes,
    "pretrain": pretrain,
    "resume": resume,
    "probe": probe,
    "embed": embed,
    "reconstruct": reconstruct,
    "report": report,
    "import": import_,
    "export": export,
    "pack": pack,
    "bench": bench,
}
