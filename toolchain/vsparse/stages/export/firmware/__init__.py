"""A network in C as firmware for a microcontroller: compiled, linked, measured, and executed by an emulator."""

from vsparse.stages.export.firmware.boards import BOARDS, Board
from vsparse.stages.export.firmware.emulate import Execution, boot, emulate
from vsparse.stages.export.firmware.link import Footprint, footprint, link

__all__ = ["BOARDS", "Board", "Execution", "Footprint", "boot", "emulate", "footprint", "link"]
