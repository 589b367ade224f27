"""Assembly as LLVM prints it for RDNA, taken apart once: instructions, labels and the kernel's metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from .faults import UnknownInstruction

# Names of gfx10 (and of older assemblers), as gfx11 and gfx12 spell them; one name, one row in the tables.
RENAMED = {
    "dword": "b32", "dwordx2": "b64", "dwordx3": "b96", "dwordx4": "b128", "dwordx8": "b256",
    "dwordx16": "b512",
    "ushort": "u16", "sshort": "i16", "ubyte": "u8", "sbyte": "i8", "short": "b16", "byte": "b8",
    "short_d16": "d16_b16", "short_d16_hi": "d16_hi_b16",
}  # fmt: skip
SCALAR_RENAMED = {
    "s_add_i32": "s_add_co_i32", "s_add_u32": "s_add_co_u32", "s_addc_u32": "s_add_co_ci_u32",
    "s_sub_i32": "s_sub_co_i32", "s_sub_u32": "s_sub_co_u32", "s_subb_u32": "s_sub_co_ci_u32",
    "s_addk_i32": "s_addk_co_i32", "s_andn2_b32": "s_and_not1_b32", "s_andn2_b64": "s_and_not1_b64",
    "s_orn2_b32": "s_or_not1_b32", "s_orn2_b64": "s_or_not1_b64",
    "s_andn2_saveexec_b32": "s_and_not1_saveexec_b32", "s_orn2_saveexec_b32": "s_or_not1_saveexec_b32",
}  # fmt: skip
VECTOR_RENAMED = {
    "v_mad_u64_u32": "v_mad_co_u64_u32", "v_mad_i64_i32": "v_mad_co_i64_i32",
    "v_lshlrev_b64": "v_lshlrev_b64",
    "v_dot2acc_f32_f16": "v_dot2c_f32_f16", "v_max_num_f32": "v_max_f32", "v_min_num_f32": "v_min_f32",
    "v_max_num_f16": "v_max_f16", "v_min_num_f16": "v_min_f16",
}  # fmt: skip

FLAGS = frozenset(["glc", "slc", "dlc", "clamp", "offen", "idxen", "lds", "gds"])
NAMED = {
    "vcc_lo": 106,
    "vcc_hi": 107,
    "vcc": 106,
    "null": 124,
    "m0": 125,
    "exec_lo": 126,
    "exec_hi": 127,
    "exec": 126,
}
TTMP = 108
MODIFIER = re.compile(r"\b([a-z][a-z_0-9]*):(\[[^\]]*\]|\w+\([^)]*\)|[^\s,]+)")
REGISTER = re.compile(r"(v|s|ttmp)(?:(\d+)|\[(\d+):(\d+)\])(?:\.([lh]))?")


@dataclass(frozen=True)
class Operand:
    """A register or a constant.

    Attributes:
        kind: "v", "s" (also vcc, exec, m0, ttmp, null) or "literal"; "off" for no address.
        index, count: the first register, and how many; value: of a literal, an integer or a float.
        high: the upper half of the register (true16); negated, absolute, sign_extended: before use.
    """

    kind: str
    index: int = 0
    count: int = 1
    value: int | float = 0
    high: bool | None = None
    negated: bool = False
    absolute: bool = False
    sign_extended: bool = False

    @property
    def is_null(self) -> bool:
        """Whether it is the scalar register that reads as 0 and keeps nothing; v124 has its number too."""
        return self.kind == "s" and self.index == NAMED["null"]

    def registers(self, words: int | None = None) -> tuple[tuple[str, int], ...]:
        """The 32-bit registers that an access to the operand touches."""
        if self.kind not in "vs" or self.is_null:
            return ()
        return tuple((self.kind, self.index + k) for k in range(words or self.count))


@dataclass(frozen=True)
class Instruction:
    """One instruction; of a dual instruction, its first half with the other in ``second``."""

    name: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, str]
    text: str
    target: str = ""
    second: Instruction | None = None
    dual: bool = False


@dataclass
class Program:
    """A kernel: instructions in order, labels by name, and the numbers of its metadata."""

    name: str
    architecture: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, int] = field(default_factory=dict)
    arguments: list[dict[str, str]] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """10, 11 or 12."""
        return int(self.architecture[3:5])


def parse(assembly: str) -> Program:
    """Take a module with one kernel apart."""
    name = re.search(r"\.amdhsa_kernel (\w+)", assembly)
    target = re.search(r"amdgcn-amd-amdhsa--(gfx\w+)", assembly)
    if name is None or target is None:
        raise UnknownInstruction("the assembly declares no kernel or no target")
    program = Program(name[1], target[1])
    program.metadata = {k: int(v) for k, v in re.findall(r"\.amdhsa_(\w+) (\d+)\n", assembly)}
    program.arguments = [
        dict(re.findall(r"\.(\w+):\s+(\S+)", entry))
        for entry in re.split(r"\n\s+- ", _between(assembly, ".args:", ".group_segment"))[0:]
        if ".offset" in entry
    ]
    inside = False
    for line in assembly.splitlines():
        text = line.split(";")[0].strip()
        if text == f"{program.name}:":
            inside = True
        elif text.startswith(".Lfunc_end"):
            break
        elif inside and text.endswith(":"):
            program.labels[text[:-1]] = len(program.instructions)
        elif inside and text and not text.startswith("."):
            program.instructions.append(parse_line(text))
    return program


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0] if start in text else ""


@cache
def parse_line(text: str) -> Instruction:
    """One line, dual instructions with both halves."""
    first, _, second = text.partition("::")
    found = _single(first.strip(), text)
    if not second:
        return found
    return Instruction(
        found.name, found.operands, found.modifiers, text, second=_single(second.strip(), text), dual=True
    )


def _single(half: str, text: str) -> Instruction:
    mnemonic, _, rest = half.replace("\t", " ").partition(" ")
    name = canonical(mnemonic)
    if name.startswith(("s_wait", "s_delay", "s_sendmsg", "s_sethalt")):
        return Instruction(name, (), {}, text, target=rest.strip())
    if name.startswith(("s_branch", "s_cbranch")):
        return Instruction(name, (), {}, text, target=rest.strip())
    modifiers = dict(MODIFIER.findall(rest))
    words = MODIFIER.sub("", rest)
    for flag in re.findall(r"\b[a-z]+\b", words):
        if flag in FLAGS:
            modifiers[flag] = "1"
            words = re.sub(rf"\b{flag}\b", "", words)
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", words)]
    return Instruction(name, tuple(operand(part) for part in parts if part), modifiers, text)


def canonical(mnemonic: str) -> str:
    """The name without its encoding, as gfx11 and gfx12 spell it."""
    name = re.sub(r"_(e32|e64|e64_dpp|dpp|dpp8|sdwa)$", "", mnemonic)
    name = re.sub(r"^v_dual_", "v_", name)
    if name in SCALAR_RENAMED:
        return SCALAR_RENAMED[name]
    moved = re.fullmatch(r"((?:s|global|buffer)_(?:buffer_)?(?:load|store))_(\w+)", name)
    if moved:
        return f"{moved[1]}_{RENAMED.get(moved[2], moved[2])}"
    if name.startswith("ds_"):
        name = name.replace("ds_read", "ds_load").replace("ds_write", "ds_store")
        name = re.sub(r"(load|store)2_", r"\1_2addr_", name)
        return re.sub(r"(load|store)2st64_", r"\1_2addr_stride64_", name)
    return VECTOR_RENAMED.get(name, name)


def operand(text: str) -> Operand:
    """One operand with the signs around it."""
    negated = absolute = extended = False
    if text.startswith("-") and not text[1:2].isdigit():
        negated, text = True, text[1:]
    if text.startswith("neg("):
        negated, text = True, text[4:-1]
    if text.startswith("sext("):
        extended, text = True, text[5:-1]
    if text.startswith("|"):
        absolute, text = True, text.strip("|")
    if text == "off":
        return Operand("off")
    kind, index, count, high = "literal", 0, 1, None
    value: int | float = 0
    register = REGISTER.fullmatch(text)
    if text in NAMED:
        kind, index, count = "s", NAMED[text], 2 if text in ("vcc", "exec") else 1
    elif register:
        kind, single, first, last, half = register.groups()
        index = int(single or first)
        count = 1 if single else int(last) - index + 1
        high = None if half is None else half == "h"
        if kind == "ttmp":
            kind, index = "s", index + TTMP
    else:
        value = _literal(text)
    return Operand(kind, index, count, value, high, negated, absolute, extended)


def _literal(text: str) -> int | float:
    text = text.removeprefix("lit(").removesuffix(")") if text.startswith("lit(") else text
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise UnknownInstruction(f"operand {text!r}") from None
