"""JSON Schema to a matcher that says, token by token, what may come next (llguidance)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy
import torch
from llguidance import LLMatcher, LLTokenizer

from onsight.core.errors import InvalidRequest, Unsupported
from onsight.engines.torch_engine.vocabulary import Vocabulary

_KEPT_SCHEMAS = 64
_PARAM = "response_format"


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
        self._tokenizer = LLTokenizer(str(vocabulary.path), n_vocab=rows, eos_token=ends) if ends else None
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, schema: str) -> Grammar:
        """A fresh matcher at the start of an answer. Raises InvalidRequest for a schema that cannot be used."""
        with self._lock:
            known = self._compiled.get(schema)
            if known is not None:
                self._compiled.move_to_end(schema)
                return known.copy()
        made = Grammar(self._build(schema))
        with self._lock:
            self._compiled[schema] = made
            while len(self._compiled) > _KEPT_SCHEMAS:
                self._compiled.popitem(last=False)
        return made.copy()

    def _build(self, schema: str) -> LLMatcher:
        if self._tokenizer is None:
            raise Unsupported("this model has no token that ends an answer, so no schema can be kept", param=_PARAM)
        try:
            # One way to write blanks, json.dumps's: free blanks let a model fill its whole answer with them.
            grammar = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            )
        except ValueError as error:
            raise InvalidRequest(f"the JSON schema cannot be read: {error}", param=_PARAM) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            why = " ".join(matcher.get_error().split())
            raise InvalidRequest(f"the JSON schema cannot be used: {why}", param=_PARAM)
        return matcher
