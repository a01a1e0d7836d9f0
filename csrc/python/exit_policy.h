#pragma once

#include <pybind11/pybind11.h>

void bind_exit_policy(pybind11::module_& module);
