"""What atheris runs: bytes to a frame or a part, and into an account; anything but a refusal is a finding."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["moescope", "msgspec", "numpy"]):
    import msgspec

    from moescope.capture.wire import WireError, decode_frame, encode_frame
    from moescope.capture.wire.traces import decode_part
    from moescope.service.counts.account import Account
    from moescope.service.counts.refusals import RefusedError
    from tests.service.frames import frame, halves, producer
    from tests.service.trace_parts import part


def one(data: bytes) -> None:
    """Decode, and post what could be decoded."""
    account = Account(4)
    account.post(frame({0: [1, 1, 1, 1]}, seq=2))
    for decode in (decode_frame, decode_part):
        try:
            found = decode(data)
        except WireError as error:
            str(error)  # a refusal must be printable
            continue
        if decode is decode_frame:
            try:
                account.post(found)
            except RefusedError as error:
                str(error)


def main() -> None:
    """Run with libFuzzer's flags."""
    seeds = [
        encode_frame(
            frame({0: [2, 2, 2, 2]}, seq=3, who=producer(dp_size=2, ep_size=2), placement=halves(4, 1))
        ),
        msgspec.msgpack.encode(part(1, tokens=3)),
    ]
    for seed in seeds:
        one(seed)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
