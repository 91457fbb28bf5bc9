from .entry import main as main
from .options import COMMANDS as COMMANDS
