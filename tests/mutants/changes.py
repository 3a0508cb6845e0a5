"""Small faults in a module, one at a time: what mutation testing puts in.

No library is used: those that run many mutants from one process, as mutmut does, change nothing in
properties, decorated functions and constants of a module, which is where much of ours stands.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
# Without these a function is not what its callers call, which any test sees.
NEEDED_DECORATORS = ("property", "staticmethod", "classmethod", "contextmanager", "dataclass")
# Types, which mypy checks, and what decorators are given, which says how to make a class.
LEFT_ALONE = ("annotation", "returns", "decorator_list")


class Mutant(NamedTuple):
    """A module with one change.

    Attributes:
        name: function, what stood there and what stands there now; unlike that of any other mutant
            of the module, and the same after changes elsewhere.
        line: where, in the unchanged module.
        source: the whole module.
    """

    name: str
    line: int
    source: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in its order."""
    tree = ast.parse(source)
    made, names = [], Counter()
    for scope, node, put in _places(tree, ""):
        for changed in _changes(node):
            put(changed)
            ast.fix_missing_locations(tree)
            name = f"{scope or 'module'}: {_brief(node)} -> {_brief(changed)}"
            names[name] += 1
            if names[name] > 1:
                name = f"{name} #{names[name]}"
            made.append(Mutant(name, node.lineno, ast.unparse(tree)))
        put(node)
    return made


def _brief(node: ast.AST) -> str:
    """The first line of what it stands for."""
    return ast.unparse(node).strip().split("\n")[0]


def _places(parent: ast.AST, scope: str) -> Iterator[tuple]:
    """(scope, node, put) of each node that may be changed; put(other) puts another in its place."""
    for field, value in ast.iter_fields(parent):
        if field in LEFT_ALONE or isinstance(parent, ast.Import | ast.ImportFrom | ast.Assert):
            continue
        if isinstance(parent, ast.keyword) and parent.arg == "strict":  # of zip: it checks us
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_text(parent, node):
                continue
            if hasattr(node, "lineno"):

                def put(other, field=field, index=index):
                    held = getattr(parent, field)
                    if isinstance(held, list):
                        held[index] = other
                    else:
                        setattr(parent, field, other)

                yield scope, node, put
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            yield from _places(node, f"{scope}.{node.name}".lstrip(".") if named else scope)


def _is_text(parent: ast.AST, node: ast.AST) -> bool:
    """Whether it is a docstring, or text of a formatted string."""
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return isinstance(parent, ast.FormattedValue) and node is parent.format_spec
    return isinstance(parent, ast.Expr | ast.JoinedStr)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    yield from _changed_expression(node)
    yield from _changed_statement(node)


def _changed_expression(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, ops, comparators):
            for index, op in enumerate(ops):
                other = COMPARISONS[type(op)]()
                yield ast.Compare(left, [*ops[:index], other, *ops[index + 1 :]], comparators)
        case ast.BoolOp(op, values):
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.Constant(str(value)):
            yield ast.Constant(value + "x")
        case ast.IfExp(test, body, orelse) if not _is_changed_itself(test):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Call(function, arguments, keywords):
            for index, keyword in enumerate(keywords):
                if keyword.arg not in (None, "strict"):
                    rest = [*keywords[:index], *keywords[index + 1 :]]
                    yield ast.Call(function, arguments, rest)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            yield from _without_conditions(node)


def _changed_statement(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Expr(ast.Constant()):  # a docstring
            return
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Return(value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.If(test, body, orelse) | ast.While(test, body, orelse):
            if not _is_changed_itself(test):
                yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.With(items, body) if all(item.optional_vars is None for item in items):
            yield ast.If(ast.Constant(True), body, [])
        case ast.FunctionDef(decorator_list=decorators):
            for index, decorator in enumerate(decorators):
                if not any(name in ast.unparse(decorator) for name in NEEDED_DECORATORS):
                    kept = {**vars(node)}
                    kept["decorator_list"] = [*decorators[:index], *decorators[index + 1 :]]
                    yield ast.FunctionDef(**kept)


def _is_changed_itself(test: ast.expr) -> bool:
    """Whether a change of it turns the condition round."""
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return negated or isinstance(test, ast.Compare)


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _without_conditions(node: ast.AST) -> Iterator[ast.AST]:
    """A comprehension without one of its conditions."""
    for place, generator in enumerate(node.generators):
        for index in range(len(generator.ifs)):
            rest = [*generator.ifs[:index], *generator.ifs[index + 1 :]]
            changed = ast.comprehension(
                generator.target, generator.iter, rest, is_async=generator.is_async
            )
            generators = [*node.generators[:place], changed, *node.generators[place + 1 :]]
            yield type(node)(**{**vars(node), "generators": generators})
