"""JSON Schema and tools to a matcher that says, token by token, what may come next (llguidance)."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy
import torch
from llguidance import LLMatcher, LLTokenizer

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.core.tools import ToolUse
from onsight.engines.torch_engine.tool_syntax import ToolSyntax
from onsight.engines.torch_engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_KEPT_SCHEMAS = 64
_PARAM = "response_format"
_MOST_CALLS = 16
"""Most calls in one answer, so that a model that goes on calling comes to an end."""

# One way to write blanks, json.dumps's: free blanks let a model fill its whole answer with them.
_ONE_WAY: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """One answer's state in its schema. Copies are cheap; a compiled schema is shared by copying."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Grammar:
        return Grammar(self._matcher.deep_copy())

    @property
    def complete(self) -> bool:
        """Whether nothing may follow what was written."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocab_rows: int) -> torch.Tensor:
        """[vocab_rows], True for every token that may come next; the end only where the schema is satisfied."""
        words = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        bits = numpy.unpackbits(words, bitorder="little")[:vocab_rows]
        return torch.from_numpy(bits.astype(numpy.bool_))

    def accept(self, token_id: int) -> None:
        """Move on by one token. Raises RuntimeError for one that was not allowed."""
        if not self._matcher.consume_token(token_id):
            raise RuntimeError(f"token {token_id} breaks the schema: {self._matcher.get_error()}")


class GrammarCompiler:
    """Compiles schemas for one vocabulary; called from several threads of the pool."""

    def __init__(self, vocabulary: Vocabulary, vocab_rows: int, end_token_ids: Sequence[int]) -> None:
        rows = max(vocab_rows, vocabulary.size)
        ends = list(end_token_ids)
        self._vocabulary = vocabulary
        self._tokenizer = LLTokenizer(str(vocabulary.path), n_vocab=rows, eos_token=ends) if ends else None
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, schema: str) -> Grammar:
        """A fresh matcher at the start of an answer. Raises InvalidRequest for a schema that cannot be used."""
        return self._find(schema, lambda: self._from_schema(schema, _PARAM))

    def compile_calls(self, use: ToolUse, syntax: ToolSyntax, schema: str | None) -> Grammar:
        """A matcher for an answer that calls, or, where the choice leaves it free, says something (under `schema`).

        Raises InvalidRequest that names the tool whose parameters cannot be used.
        """
        return self._find(repr((use, syntax, schema)), lambda: self._from_tools(use, syntax, schema))

    def _find(self, key: str, build: Callable[[], LLMatcher]) -> Grammar:
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
                return known.copy()
        made = Grammar(build())
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > _KEPT_SCHEMAS:
                self._compiled.popitem(last=False)
        return made.copy()

    def _from_schema(self, schema: str, param: str | None) -> LLMatcher:
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_ONE_WAY)
        except ValueError as error:
            raise InvalidRequest(f"the JSON schema cannot be read: {error}", param=param) from None
        return self._build(grammar, param)

    def _from_tools(self, use: ToolUse, syntax: ToolSyntax, schema: str | None) -> LLMatcher:
        # Each schema alone first, so that an error names the one at fault.
        if schema is not None:
            self._from_schema(schema, _PARAM)
        for tool in use.tools:
            self._from_schema(tool.parameters, tool.param)
        return self._build(_call_grammar(use, syntax, schema, self._marker), "tools")

    def _marker(self, text: str) -> str:
        """A call's opening or closing word as Lark: the one token that models were trained on, where there is one.

        llguidance takes such tokens for special and never allows them where a grammar has their characters.
        """
        token = self._vocabulary.find(text)
        if self._tokenizer is None or token is None or not self._tokenizer.is_special_token(token):
            return json.dumps(text)
        # A token without text could not be read in the answer.
        return f"<[{token}]>" if self._vocabulary.data(token) == text.encode() else json.dumps(text)

    def _build(self, grammar: str, param: str | None) -> LLMatcher:
        if self._tokenizer is None:
            raise Unsupported("this model has no token that ends an answer, so no schema can be kept", param=param)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            why = " ".join(matcher.get_error().split())
            raise InvalidRequest(f"the JSON schema cannot be used: {why}", param=param)
        return matcher


def _call_grammar(use: ToolUse, syntax: ToolSyntax, schema: str | None, marker: Callable[[str], str]) -> str:
    """Lark text for calls in `syntax`; unless a call is required, also for text, alone or before the first call."""
    opens, closes = marker(syntax.opens), marker(syntax.closes)
    following = f'("\\n" {opens} call)'
    many = syntax.parallel and use.parallel is not False and use.choice.name is None
    calls = f"call {following}{{0,{_MOST_CALLS - 1}}}" if many else "call"
    names = [f"call_{index}" for index in range(len(use.callable))]
    rules = ["%llguidance {}", f"calls: {calls}", f"call: {' | '.join(names)}"]
    ends = json.dumps("}\n")
    for name, tool in zip(names, use.callable, strict=True):
        head = json.dumps(f'\n{{"name": {json.dumps(tool.name)}, "arguments": ')
        rules.append(f"{name}: {head} {name}_arguments {ends} {closes}")
        rules.append(f"{name}_arguments: {_json_rule(tool.parameters)}")
    if use.choice.mode == "required":
        return "\n".join([*rules, f"start: {opens} calls"])
    if schema is not None:
        return "\n".join([*rules, f"start: said | {opens} calls", f"said: {_json_rule(schema)}"])
    word = re.escape(syntax.opens)
    # Spelled in letters the marker is no text either, so that whoever reads the answer cannot mistake it.
    said = f"SAID: /(?s:.*)/ & ~/(?s:.*){word}(?s:.*)/"
    if opens.startswith("<["):
        return "\n".join([*rules, f"start: SAID | SAID? {opens} calls", said])
    return "\n".join([*rules, "start: SAID | lead calls", said, f"lead[lazy]: /(?s:.*){word}/"])


def _json_rule(schema: str) -> str:
    return f"%json {json.dumps({**json.loads(schema), 'x-guidance': _ONE_WAY})}"
