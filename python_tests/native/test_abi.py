"""One build serves every torch from 2.11 on: the libraries ask it for nothing else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from abi import TARGET_VERSION, declared_functions, foreign_symbols, stable_shim, undefined_symbols

import anchornet_ext

PACKAGE = Path(anchornet_ext.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
TORCH_INCLUDE = Path(torch.__file__).parent / "include"


def libraries() -> list[Path]:
    native = importlib.import_module("anchornet_ext._C").__file__
    assert native is not None
    cuda = PACKAGE / "_cuda.so"
    return [Path(native), *([cuda] if cuda.exists() else [])]


@pytest.fixture(scope="module")
def shim() -> set[str]:
    return stable_shim(TORCH_INCLUDE)


def test_target_version_is_the_one_the_build_sets() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    assert re.findall(r"set\(TORCH_TARGET_VERSION (\w+)\)", text) == [TARGET_VERSION]


def test_libraries_use_only_the_stable_shim_of_the_target_version(shim: set[str]) -> None:
    for library in libraries():
        symbols = undefined_symbols(library)
        assert "torch_call_dispatcher" in symbols, f"{library} does not look like ours: {symbols}"
        assert foreign_symbols(symbols, shim) == []


def test_shim_leaves_out_what_came_after_the_target_version(shim: set[str]) -> None:
    """The reading of the headers is by version: another target gives another list."""
    oldest = stable_shim(TORCH_INCLUDE, "0x0209000000000000")
    assert {"torch_call_dispatcher", "torch_from_blob"} <= shim
    assert "torch_call_dispatcher" not in oldest
    assert "aoti_torch_get_data_ptr" in oldest & shim


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN2at5emptyEN3c108ArrayRefIlEE",
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",
        "_ZNK2at6Tensor5numelEv",
        "_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev",
        "_ZTIN5torch8autograd4NodeE",
        "torch_function_of_a_later_release",
        "aoti_torch_cuda_addmm_out",
        "cblas_sgemm",
        "_Z8somebodyv",
        "PyTorch_does_not_say",
    ],
)
def test_a_foreign_symbol_is_found(symbol: str, shim: set[str]) -> None:
    harmless = ["memcpy@GLIBC_2.14", "_ZSt4cerr@GLIBCXX_3.4", "PyList_New", "_PyObject_New"]
    harmless += ["cudaLaunchKernel", "cuGetErrorName", "__cudaRegisterFunction", "__gmon_start__"]
    harmless += ["_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv", "_ZNKSt5ctypeIcE8do_widenEc"]
    harmless += ["__cxa_throw@CXXABI_1.3", "_Unwind_Resume@GCC_3.0", "aoti_torch_get_data_ptr"]
    assert foreign_symbols(harmless, shim) == []
    assert foreign_symbols([*harmless, symbol], shim) == [symbol]


def test_declared_functions_are_read_from_declarations() -> None:
    text = """
    AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* d);
    AOTITorchError torch_parallel_for (int64_t begin);
    struct torch_thing; int aoti_torch_mps_malloc(void**);
    """
    assert declared_functions(text) == {"aoti_torch_get_dim", "torch_parallel_for"}


def test_error_messages_do_not_carry_the_folder_of_the_build() -> None:
    for library in libraries():
        content = library.read_bytes()
        assert b"csrc/ops/" in content
        if b".nv_debug_line_sass" in content:
            continue  # -DANCHORNET_CUDA_PROFILE=ON, which is for the machine that builds
        assert str(ROOT / "csrc").encode() not in content
