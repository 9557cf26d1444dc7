"""The boards that firmware is emulated on: Arm's MPS2 and MPS3 FPGA images, as QEMU has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """A processor and a QEMU machine that has it; `rom` and `ram` are (first address, bytes) of memories that code starts from.

    `clock` is what SysTick counts, in Hz. Sources: QEMU 7.2, hw/arm/mps2.c, mps2-tz.c; Arm application notes AN385, AN386, AN500, AN505,
    AN547.
    """

    cpu: str
    options: tuple[str, ...]
    machine: str
    rom: tuple[int, int]
    ram: tuple[int, int]
    clock: int


_MPS2 = ((0x00000000, 2**22), (0x20000000, 2**22), 25_000_000)
# By the name of the target (targets/NAME.toml); cortex-m3 has none.
BOARDS: dict[str, Board] = {
    "cortex-m3": Board("Cortex-M3", ("-mcpu=cortex-m3", "-mthumb"), "mps2-an385", *_MPS2),
    "cortex-m4f": Board("Cortex-M4F", ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "mps2-an386", *_MPS2),
    "cortex-m7": Board("Cortex-M7", ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "mps2-an500", *_MPS2),
    "cortex-m33": Board(
        "Cortex-M33",
        ("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
        "mps2-an505",
        (0x10000000, 2**22),
        (0x38000000, 2**22),
        20_000_000,
    ),
    "cortex-m55": Board(
        "Cortex-M55",
        ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
        "mps3-an547",
        (0x10000000, 2**19),
        (0x30000000, 2**19),
        32_000_000,
    ),
}
