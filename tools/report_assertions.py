"""In a notebook's kernel: assertions report what they find and do not raise. `tools/processors.py` imports it there."""

import ast
import os
from collections.abc import Callable
from typing import Any

import IPython
from IPython.display import display


def short(value: Any) -> str:
    """A value on one line; of many numbers the least and the largest."""
    if isinstance(value, (list, tuple)) and len(value) > 3 and all(isinstance(x, (int, float)) for x in value):
        return f"[{min(value):.5g} to {max(value):.5g}]"
    text = f"{value:.5g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) < 90 else text[:87] + "..."


def check(text: str, test: Callable[[], Any], parts: list[tuple[str, list[Callable[[], Any]]]]) -> None:
    """Stands where an assertion stood: shows a row for `tools/processors.py` to find in the cell's outputs."""
    holds = bool(test())
    if holds and not os.environ.get("PROCESSORS_ALL"):
        return
    values = []
    for form, operands in parts:
        try:
            values.append(form.format(*(short(operand()) for operand in operands)))
        except Exception as error:
            values.append(f"{form} ({error!r})")
    display({"application/json": {"assertion": text, "values": "; ".join(values), "holds": holds}}, raw=True)


def comparisons(test: ast.expr) -> list[tuple[str, list[ast.expr]]]:
    """Each comparison as a form, such as "{} < {}", and its operands; of all(a < b for …), all a and all b."""
    if isinstance(test, ast.BoolOp):
        return [part for value in test.values for part in comparisons(value)]
    if isinstance(test, ast.UnaryOp):
        return comparisons(test.operand)
    if isinstance(test, ast.Compare):
        signs = [ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")]))[1:-1] for op in test.ops]
        return [("{}" + "".join(sign + "{}" for sign in signs), [test.left, *test.comparators])]
    if isinstance(test, ast.Call) and test.args and isinstance(test.args[0], ast.GeneratorExp):
        every = test.args[0]
        return [
            (form, [ast.ListComp(operand, every.generators) for operand in operands])
            for form, operands in comparisons(every.elt)
        ]
    return [("{}", [test])]


class Assertions(ast.NodeTransformer):
    """Makes each assertion a call of `check`."""

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        parts = ", ".join(
            f"({form!r}, [{', '.join(f'lambda: ({ast.unparse(x)})' for x in operands)}])"
            for form, operands in comparisons(node.test)
        )
        test = ast.unparse(node.test)
        (call,) = ast.parse(f"_check_assertion({test!r}, lambda: ({test}), [{parts}])").body
        return ast.fix_missing_locations(ast.copy_location(call, node))


def noisy(load: Callable[..., Any], size: float) -> Callable[..., Any]:
    """A loader whose models have every weight off by a normal number of this relative size, always the same one."""
    import torch

    def load_with_noise(*args: Any, **kwargs: Any) -> Any:
        model, generator = load(*args, **kwargs), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + size * torch.randn(weight.shape, generator=generator).to(weight))
        return model

    return load_with_noise


shell = IPython.get_ipython()  # type: ignore[no-untyped-call]
if shell is not None:
    shell.user_ns["_check_assertion"] = check
    shell.ast_transformers.append(Assertions())
    if NOISE := float(os.environ.get("PROCESSORS_NOISE", 0)):
        import transformers

        auto = transformers.AutoModelForCausalLM
        auto.from_pretrained = noisy(auto.from_pretrained, NOISE)
