"""The emulator itself: it tells a kernel that is wrong from one that is right."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from cuda_on_host import library
from torch import Tensor

SOURCE = (library.HERE / "broken_kernels.cu").read_text()
CASES = {
    name: number
    for number, name in enumerate(re.findall(r"^  (k\w+),$", SOURCE, flags=re.MULTILINE))
}


def line_of(case: str, text: str) -> int:
    """Where `text` stands in the code of `case`."""
    after = SOURCE.index(f"case {case}:")
    return SOURCE[: SOURCE.index(text, after)].count("\n") + 1


def numbers(stride: int = 1) -> Tensor:
    return torch.arange(1.0, 128 * stride + 1)[::stride]


def run(what: str | int, x: Tensor) -> Tensor:
    library.emulator()
    return library.checked(torch.ops.anchornet_ext_cuda_on_host.broken)(
        x, CASES[what] if isinstance(what, str) else what
    )


def reversed_by(block: int) -> Tensor:
    return numbers().reshape(-1, block).flip(1).flatten()


RIGHT = {
    "kReverse": reversed_by(64),
    "kReverseInWarp": reversed_by(32),
    "kHalfWarpShuffle": torch.where(torch.arange(128) % 32 < 16, reversed_by(16), numbers()),
    "kPartialWarpVote": torch.where(torch.arange(128) % 32 < 8, 8.0, numbers()),
}
RACE = "race in shared memory"
TOO_EARLY = "race in shared memory|shared memory that the block has not written"
WRONG = {
    "kReverseWithoutBarrier": TOO_EARLY,
    "kReadAfterReadersLeft": RACE,
    "kReverseInWarpWithoutSync": TOO_EARLY,
    "kReverseBlockWithWarpSync": TOO_EARLY,
    "kReadBeyond": "reads 4 bytes .* which no tensor of the operator covers",
    "kReadBefore": "reads 4 bytes .* which no tensor of the operator covers",
    "kWriteBeyond": "race in global memory|writes 4 bytes .* which no tensor",
    "kWriteInput": "writes 4 bytes .* which it may only read",
    "kBlocksMeet": "race in global memory.*another block",
    "kReadUnwritten": "shared memory that the block has not written",
    "kReadBeyondShared": f"reads 8 bytes .* which no tensor|{TOO_EARLY}",
    "kBarrierForHalf": "32 of 64 threads wait at this barrier, but thread .. has ended",
    "kTwoBarriers": "threads of a block wait at different barriers",
    "kBarrierAfterExit": "63 of 64 threads wait at this barrier, but thread 5 has ended",
    "kShuffleAfterExit": "waits in a shuffle for lane 5, which has ended",
    "kShuffleFromOutside": "reads the value of lane .*, which takes no part",
    "kShuffleNotInMask": "calling lane is not in the mask 0000ffff",
    "kShuffleBesideVote": "wait in different exchanges",
    "kShuffleBesideBarrier": "wait at this barrier, but thread .* waits for lanes of its warp",
    "kOthersLocalMemory": "another thread's local memory",
    "kMisaligned": "misaligned address .* multiple of 16",
    "kOverflow": "undefined behaviour: a sum overflows",
    "kShift": "undefined behaviour: a shift by too much",
}


@pytest.fixture(autouse=True, params=range(3))
def any_order(request: pytest.FixtureRequest) -> None:
    library.emulator().seed(request.param)


def test_every_case_is_asked_for() -> None:
    assert {*RIGHT, *WRONG, "kReadGap"} == set(CASES)


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_runs(case: str) -> None:
    assert torch.equal(run(case, numbers()), RIGHT[case])


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(case: str) -> None:
    with pytest.raises(RuntimeError, match=f"cuda_on_host: .*({WRONG[case]})"):
        run(case, numbers())
    assert torch.equal(run("kReverse", numbers()), RIGHT["kReverse"])  # and nothing is left of it


def test_what_lies_between_the_elements_is_not_the_tensors() -> None:
    """A window's memory has elements of others in it, which a kernel must not read."""
    with pytest.raises(RuntimeError, match=r"reads 4 bytes .* which no tensor"):
        run("kReadGap", numbers(stride=2))
    assert torch.equal(
        run("kReverse", numbers(stride=2)), numbers(2).reshape(2, 64).flip(1).flatten()
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (-1, "without a device guard"),
        (-2, "another stream"),
        (-3, "cannot launch 2 blocks of 2048 threads"),
    ],
)
def test_a_wrong_launch_is_found(what: int, why: str) -> None:
    with pytest.raises(RuntimeError, match=f"cuda_on_host: .*{why}"):
        run(what, numbers())
    assert torch.equal(run("kReverse", numbers()), RIGHT["kReverse"])


def test_the_error_says_where() -> None:
    line = line_of("kOverflow", "0x7fffffff")
    with pytest.raises(
        RuntimeError, match=rf"broken_kernels.cu:{line}: undefined .*\(block \d, thread \d+\)"
    ):
        run("kOverflow", numbers())
    line = line_of("kBarrierForHalf", "__syncthreads")
    with pytest.raises(RuntimeError, match=f"broken_kernels.cu:{line}: 32 of 64"):
        run("kBarrierForHalf", numbers())
    line = line_of("kWriteInput", "const_cast")
    where = rf"broken_kernels.cu:{line}\b" if shutil.which("addr2line") else r"code \+0x"
    with pytest.raises(RuntimeError, match=rf"may only read in .*{where}"):
        run("kWriteInput", numbers())


def test_the_first_and_the_last_blocks_alone_can_be_run() -> None:
    x = torch.arange(64 * 5.0)
    with library.emulator().only_blocks(1, 2):
        result = run("kReverse", x).reshape(5, 64)
    expected = x.reshape(5, 64).flip(1)
    ran = [torch.equal(got, want) for got, want in zip(result, expected, strict=True)]
    assert ran == [True, False, False, True, True]
    assert result[1:3].isnan().all()  # what is not written is seen
