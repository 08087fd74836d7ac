import subprocess
import sys

import pytest

from evalq.errors import PlanError, QuantizationError
from evalq.quantize.config import METHODS, Method, Option, check_scheme, resolve_options
from evalq.schema import Scheme, WeightScheme


def test_the_methods_named_in_the_design_exist():
    assert {"rtn", "gptq", "awq", "awq+gptq"} <= set(METHODS)
    assert all(METHODS.get(name).summary for name in METHODS)


def test_listing_methods_needs_no_torch():
    code = "import sys, evalq.quantize.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(PlanError, match="has no option 'dampening'") as caught:
        resolve_options(METHODS.get("gptq"), {"dampening": 0.1})
    assert "damping" in caught.value.hint


def test_defaults_are_filled_in_and_a_whole_number_will_do_for_a_fraction():
    options = resolve_options(METHODS.get("gptq"), {"damping": 1})
    assert options["damping"] == 1.0
    assert isinstance(options["damping"], float)
    assert options["act_order"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("damping", "much"),
        ("damping", 0.0),
        ("damping", float("nan")),
        ("act_order", 1),
        ("block_size", 0),
        ("block_size", 12.5),
        ("scale_search", "mes"),
    ],
)
def test_values_that_cannot_be(name, value):
    with pytest.raises(PlanError, match=name):
        resolve_options(METHODS.get("gptq"), {name: value})


def test_every_default_is_allowed():
    for name in METHODS:
        for option_name, option in METHODS.get(name).options.items():
            assert option.check(option_name, option.default) == option.default


def test_a_width_that_a_method_has_not():
    method = Method("x", "x", needs_calibration=False, bits=(4, 8), options={"a": Option(1, "a")})
    with pytest.raises(QuantizationError, match="does not make 5 bits") as caught:
        check_scheme(method, Scheme(WeightScheme(5)))
    assert "4, 8" in caught.value.hint


def test_learned_rounding_is_for_weights_alone():
    with pytest.raises(QuantizationError, match="exact activations") as caught:
        check_scheme(METHODS.get("gptq+signround"), Scheme(WeightScheme(8), activation_bits=8))
    assert "smoothquant+gptq" in caught.value.hint


def test_activations_are_left_or_take_8_bits():
    with pytest.raises(QuantizationError, match="4 bits"):
        check_scheme(METHODS.get("rtn"), Scheme(WeightScheme(8), activation_bits=4))
