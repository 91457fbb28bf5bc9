from .entry import main as main
from .options import ACTIONS as ACTIONS, COMMANDS as COMMANDS
