from .entry import COMMANDS as COMMANDS, main as main
