"""A secret script: each letter of an unknown text is replaced by a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import IMPOSSIBLE
from ppl_vae.models.sequences.categorical_emissions import CategoricalEmissions
from ppl_vae.models.sequences.forward_backward import steps_within
from ppl_vae.models.sequences.hidden_path import Statistics
from ppl_vae.networks import require_positive

_SUMS_TO_ONE = 1e-4
"""How far from 1 the sum of probabilities may be: they are normalized."""


class SubstitutionCipher(CategoricalEmissions):
    """z ~ a bigram model of a language, letter by letter, and x_t ~ Categorical(key[z_t]).

    The plaintext z is the latent variable of the ciphertext x. The language is known: it stays as it is, and
    only the key is learned, from ciphertexts alone. As z is a path of a Markov chain,

        log p(x) = log sum_z p(z_0) key[z_0, x_0] prod_t p(z_t | z_{t-1}) key[z_t, x_t],

    the posterior p(z | x) (a Markov chain) and the EM step are sums over all K^T plaintexts, in T K^2
    operations, as of a `CategoricalHMM` ("Unsupervised Analysis for Decipherment Problems", Knight, Nair,
    Rathod & Yamada 2006). The key of a substitution cipher has a 1 in each row; this one may have any
    probabilities, so that letters may share a symbol and have several. EM only finds a local maximum: give
    `fit_em` restarts, which are compared by log p(x).

    Data are ciphertexts `x`, `(n, T)`, of symbols 0, 1, ..., or a tuple `(x, lengths)`, with the number of
    letters of each, at least 1. What `x` holds beyond is ignored: the plaintext stays at its last letter there,
    and symbol 0 is certain. T may differ from call to call.

    The sites are `z` and `x`, the whole texts, `(n, T)`, inside `pyro.plate("data", n, dim=-1)`: sites for
    single letters would cost a millisecond each. `ELBO` is `ElementwiseELBO`, which sums over letters by the
    marginals of q(z | x): exactly, for every guide that is a Markov chain, `Recurrent(..., whole=True)` or
    `Exact`.

    Args:
        data_shape: Shape of one row of the data, `(T,)`.
        initial: p(z_0), K probabilities.
        transition: p(z_t = j | z_{t-1} = i), K rows of K probabilities. Both are lists, so that a saved run
            can be built again; `bigrams_of` counts them in a text.
        symbols: Number of symbols; as many as letters if None.

    Attributes:
        key: log p(x_t | z_t) up to a constant per row, `(K, symbols)`.
        initial_logits: log p(z_0), `(K,)`, which no step changes.
        transition_logits: log p(z_t | z_{t-1}), `(K, K)`, which no step changes.

    Raises:
        TypeError: `initial` or `transition` is no list of numbers.
        ValueError: They are no probabilities, or do not fit together; `symbols` is not positive; `data_shape`
            is not `(T,)`.

    Example:
        >>> plain = torch.tensor([[0, 0, 1, 2] * 15])
        >>> model = SubstitutionCipher((60,), *SubstitutionCipher.bigrams_of(plain, letters=3))
        >>> secret = torch.tensor([2, 0, 1])[plain]
        >>> model.initialize(secret, seed=1)
        >>> for _ in range(20):
        ...     model.maximize(model.expected_statistics(secret))
        >>> model.key.argmax(1).tolist(), bool((model.posterior(secret).mode == plain).all())
        ([2, 0, 1], True)
    """

    whole: ClassVar[bool] = True

    def __init__(
        self,
        data_shape: Sequence[int],
        initial: Sequence[float],
        transition: Sequence[Sequence[float]],
        symbols: int | None = None,
    ) -> None:
        of_first, of_next = _numbers("initial", initial, 1), _numbers("transition", transition, 2)
        super().__init__(data_shape, len(of_first))
        if of_next.shape != (self.states, self.states):
            raise ValueError(
                f"SubstitutionCipher.transition must have {self.states} rows of {self.states} probabilities, "
                f"as initial has {self.states}, got shape {tuple(of_next.shape)}"
            )
        self._set_symbols(self.states if symbols is None else symbols)
        self.register_buffer("initial_logits", _log(of_first))
        self.register_buffer("transition_logits", _log(of_next))
        # At a key whose rows are all the same EM and gradients stay: start apart.
        self.key = nn.Parameter(0.1 * torch.randn(self.states, self.symbols))

    @property
    def table(self) -> Tensor:
        """See `CategoricalEmissions`."""
        return self.key

    @staticmethod
    def bigrams_of(
        plain: Tensor, letters: int, lengths: Tensor | None = None, smoothing: float = 1.0
    ) -> tuple[list[float], list[list[float]]]:
        """`initial` and `transition` of a language, counted in texts of it.

        With s = `smoothing` K, and f(j) the share of letter j, one more of each counted,

            p(z_t = j | z_{t-1} = i) = (count(i, j) + s f(j)) / (count(i) + s),

        and p(z_0) likewise from the first letters of the texts: what was not seen has a probability, too.

        Args:
            plain: Texts, whole numbers 0, ..., letters - 1, `(m, T)`.
            letters: Number K of letters.
            lengths: Their letters, `(m,)`; all T if None.
            smoothing: How many letters are added for each that there is, after each letter.

        Raises:
            ValueError: `plain` has another shape, or other numbers; smoothing is not positive.

        Example:
            >>> initial, transition = SubstitutionCipher.bigrams_of(torch.tensor([[0, 1, 0, 1, 0]]), letters=2)
            >>> [[round(p, 3) for p in row] for row in transition]
            [[0.286, 0.714], [0.786, 0.214]]
        """
        if plain.dim() != 2 or plain.is_floating_point():
            raise ValueError(
                f"plain must hold texts of whole numbers, (m, T), got {plain.dtype} of shape "
                f"{tuple(plain.shape)}"
            )
        require_positive(SubstitutionCipher, smoothing=smoothing)
        inside = torch.ones_like(plain, dtype=torch.bool)
        if lengths is not None:
            inside = steps_within(lengths, plain.shape[1])
        found = plain[inside]
        if not len(found) or not 0 <= int(found.min()) <= int(found.max()) < letters:
            what = f"from {int(found.min())} to {int(found.max())}" if len(found) else "no letter"
            raise ValueError(f"plain must hold letters 0, ..., {letters - 1}, got {what}")
        shares = found.bincount(minlength=letters).double() + 1
        added = smoothing * letters * shares / shares.sum()
        first = plain[:, 0].bincount(minlength=letters) + added
        both = inside[:, 1:]
        pairs = (plain[:, :-1] * letters + plain[:, 1:])[both].bincount(minlength=letters**2)
        following = pairs.reshape(letters, letters) + added
        initial: list[float] = (first / first.sum()).tolist()
        transition: list[list[float]] = (following / following.sum(-1, keepdim=True)).tolist()
        return initial, transition

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Runs the model on ciphertexts `(n, T)`, with their `lengths`, `(n,)`, if they differ.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        x = self._check(x, lengths)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(x.shape[1], lengths))
            logits = self.key[z]
            if lengths is not None:
                certain = torch.full_like(logits[..., :1, :], IMPOSSIBLE)
                certain[..., 0] = 0.0
                inside = steps_within(lengths, x.shape[1]).unsqueeze(-1)
                logits = torch.where(inside, logits, certain)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def log_likelihoods(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(x_t | z_t = k) of every step and letter, `(n, T, K)`, in nats; 0 beyond the lengths.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        of_steps = self._of_steps(self._check(x, lengths))
        if lengths is None:
            return of_steps
        return torch.where(steps_within(lengths, x.shape[1]).unsqueeze(-1), of_steps, 0.0)

    # -- expectation maximization --------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, lengths: Tensor | None = None, *, seed: int) -> None:
        """Starts EM at a key drawn at random: each row is near to how often each symbol is seen.

        Args:
            x: Ciphertexts, `(n, T)`.
            lengths: Their letters, `(n,)`.
            seed: Random seed of the start.

        Raises:
            ValueError: Shapes, lengths or symbols do not fit.
        """
        x = self._check(x, lengths)
        inside = torch.ones_like(x, dtype=torch.bool)
        if lengths is not None:
            inside = steps_within(lengths, x.shape[1])
        seen = self._symbols(x[inside]).bincount(minlength=self.symbols).cpu() + 1.0
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(self.states, self.symbols, generator=generator)
        self.key.copy_((seen * (0.5 + noise)).log())

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """M step: sets the key to the maximizer of the expected log p(x, z).

        A letter without steps keeps its row.

        Args:
            statistics: Those of an E step.
        """
        self.maximize_emissions(statistics)


def _numbers(name: str, given: object, dims: int) -> Tensor:
    """Probabilities that were given as lists, `(K,)` or `(K, K)`, normalized.

    Raises:
        TypeError: They are no lists of numbers.
        ValueError: They are no probabilities.
    """
    rows = "K numbers" if dims == 1 else "K lists of K numbers"
    if not isinstance(given, list | tuple):
        lists = ": write .tolist() behind it" if hasattr(given, "tolist") else ""
        raise TypeError(
            f"SubstitutionCipher.{name} must be a list of {rows}, so that a saved run can be built again, got "
            f"{type(given).__name__}{lists}"
        )
    try:
        numbers = torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"SubstitutionCipher.{name} must be a list of {rows}, got {given!r:.80}"
        ) from error
    if numbers.dim() != dims or not numbers.numel():
        raise ValueError(
            f"SubstitutionCipher.{name} must be {rows}, got shape {tuple(numbers.shape)}"
        )
    off = (numbers.sum(-1) - 1).abs().max()
    if not (bool((numbers >= 0).all()) and float(off) <= _SUMS_TO_ONE):
        raise ValueError(
            f"SubstitutionCipher.{name} must be probabilities that sum to 1{' in each row' * (dims - 1)}, but "
            f"they go from {float(numbers.min()):g} to {float(numbers.max()):g}, and a sum is off by {off:g}"
        )
    return numbers / numbers.sum(-1, keepdim=True)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithms in torch's default dtype; of 0 `IMPOSSIBLE`."""
    return probabilities.log().clamp_min(IMPOSSIBLE).to(torch.get_default_dtype())
