"""The characters by which byte-level BPE writes bytes (Radford et al., 2019)."""


def byte_alphabet() -> dict[str, int]:
    """The byte that each of the 256 printable characters stands for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
