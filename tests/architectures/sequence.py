"""Networks over text and sound: recurrent ones, transformers, convolutions in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from architectures._seeding import noise, seeded

__all__ = [
    "bert",
    "crnn",
    "gpt",
    "gru_classifier",
    "keyword_net",
    "lstm_tagger",
    "transformer_encoder",
    "translator",
]

WORDS = 100
CLASSES = 10
LONGEST = 128


class _LstmTagger(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.lstm = nn.LSTM(width, width, num_layers=1, batch_first=True)
        self.tags = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for each token."""
        logits: Tensor = self.tags(self.lstm(self.embed(tokens))[0])
        return logits


def lstm_tagger() -> nn.Module:
    """A tag for each word by an LSTM (Hochreiter & Schmidhuber, Long Short-Term Memory, 1997)."""
    return seeded(_LstmTagger)


class _GruClassifier(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.gru = nn.GRU(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits from the last states of both directions."""
        _, state = self.gru(self.embed(tokens))
        logits: Tensor = self.classes(torch.cat([state[-2], state[-1]], 1))
        return logits


def gru_classifier() -> nn.Module:
    """Two bidirectional layers of GRU (Cho et al., Learning Phrase Representations, 2014)."""
    return seeded(_GruClassifier)


class _Attention(nn.Module):
    """Attention of several heads by scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """[batch, length, width] to the same; ``mask`` is true where a token may be looked at."""
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return attended


class _Block(nn.Module):
    """A layer of a transformer, norms last as in BERT or first as in GPT-2."""

    def __init__(self, width: int, heads: int, *, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """The layer."""
        if self.norm_first:
            x = x + self.attention(self.one(x), mask, causal)
            first: Tensor = x + self.mlp(self.two(x))
            return first
        x = self.one(x + self.attention(x, mask, causal))
        last: Tensor = self.two(x + self.mlp(x))
        return last


class _Bert(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, width), nn.Embedding(LONGEST, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, 4, norm_first=False) for _ in range(depth))
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states, and the first one pooled."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(positions))
        mask = attention_mask[:, None, None, :] > 0
        for block in self.blocks:
            x = block(x, mask)
        return x, self.pooler(x[:, 0])


def bert() -> nn.Module:
    """BERT with a mask of padding (Devlin et al., Pre-training of Deep Bidirectional Transformers, 2018)."""
    return seeded(_Bert)


class _Gpt(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, width), nn.Embedding(LONGEST, width)
        self.blocks = nn.ModuleList(_Block(width, 4, norm_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token at each place; words are compared with the embeddings."""
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x, causal=True)
        return F.linear(self.norm(x), self.words.weight) / math.sqrt(x.shape[-1])


def gpt() -> nn.Module:
    """GPT-2 (Radford et al., Language Models are Unsupervised Multitask Learners, 2019)."""
    return seeded(_Gpt)


class _Encoder(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.value = nn.Linear(width, 1)

    def forward(self, series: Tensor, mask: Tensor) -> Tensor:
        """A number for each step; ``mask`` is true where there is one."""
        numbers: Tensor = self.value(self.encoder(self.embed(series), src_key_padding_mask=~mask))
        return numbers


def transformer_encoder() -> nn.Module:
    """nn.TransformerEncoder over a series (Vaswani et al., Attention Is All You Need, 2017)."""
    return seeded(_Encoder)


class _Translator(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, width), nn.Embedding(LONGEST, width)
        self.transformer = nn.Transformer(width, 4, 2, 2, 2 * width, batch_first=True)
        self.out = nn.Linear(width, WORDS)

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return embedded

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the next word of the target at each place."""
        length = target.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        made = self.transformer(self._embed(source), self._embed(target), tgt_mask=mask)
        logits: Tensor = self.out(made)
        return logits


def translator() -> nn.Module:
    """Encoder and decoder of nn.Transformer (Vaswani et al., 2017)."""
    return seeded(_Translator)


def _keyword_net() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((1, 16, 80, 4), (16, 24, 3, 1), (24, 32, 3, 1)):
        layers += [
            nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
            nn.MaxPool1d(4),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES), nn.LogSoftmax(1)
    )


def keyword_net() -> nn.Module:
    """M5 over raw sound (Dai et al., Very Deep Convolutional Neural Networks for Raw Waveforms, 2016)."""
    return seeded(_keyword_net, noise(4, 1, 4000))


class _Crnn(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, pool in ((1, 16, (2, 2)), (16, 24, (2, 2)), (24, width, (8, 1))):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.1),
                nn.MaxPool2d(pool),
            ]
        self.features = nn.Sequential(*layers)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Log-probabilities for each column of the features."""
        columns = self.features(image).squeeze(2).transpose(1, 2)
        return F.log_softmax(self.classes(self.lstm(columns)[0]), -1)


def crnn() -> nn.Module:
    """CRNN that reads lines of text (Shi et al., An End-to-End Trainable Network, 2015)."""
    return seeded(_Crnn, noise(4, 1, 32, 64))
