"""Settings of training: every knob with its meaning, unit and bound. Importing this loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from streaming.config import Section
from training.text_guard import TextGuard


class ModelConfig(Section):
    """Shape of the recommender; stored in every bundle."""

    dim: int = Field(64, ge=8, le=1024, description="width of item and user vectors")
    blocks: int = Field(2, ge=1, le=24, description="transformer blocks of the user encoder")
    heads: int = Field(2, ge=1, le=32, description="attention heads; must divide dim")
    feed_factor: int = Field(2, ge=1, le=8, description="feed-forward width as a multiple of dim")
    length: int = Field(
        50, ge=2, le=4096, description="events of history read, at most streaming.sequence_length"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate inside the encoder")
    text_dim: int = Field(384, ge=1, description="width of text vectors; the learner takes the catalogue's")
    id_capacity: int = Field(
        8192, ge=1, description="rows of the id table; recycled least recently used first"
    )
    num_types: int = Field(
        8, ge=1, le=256, description="event types; the learner takes streaming.event_types'"
    )
    scale: float = Field(
        16.0, gt=0, le=200, description="factor on the cosine before the softmax (1/temperature)"
    )
    id_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of items trained from text alone in each step"
    )
    text_init: float = Field(
        1.0, gt=0, description="standard deviation of the text projection's first weights"
    )
    repeats: Literal["plain", "excluded", "copied"] = Field(
        "excluded",
        description="items the user had before: ranked like all others; neither learned nor ranked; or copied "
        "from the history where that is likely",
    )
    id_init: float = Field(0.3, ge=0, description="standard deviation of the id table's first weights")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ModelConfig:
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim; got heads = {self.heads}, dim = {self.dim}")
        return self


class AdversarialConfig(Section):
    """Adversarial fine-tuning on item representations: (1 - share)·L(x) + share·L(x + δ)."""

    enabled: bool = Field(True, description="train on perturbed histories too")
    method: Literal["pgd", "freelb"] = Field(
        "pgd",
        description="where the perturbed loss is taken: at the end of the ascent, or at each of its steps",
    )
    epsilon: float = Field(0.1, ge=0, le=10, description="radius of δ as a share of a representation's norm")
    sizes: Literal["same", "vulnerable"] = Field(
        "same", description="the radius of each user: the same, or larger where the user's loss is small"
    )
    steps: int = Field(
        1, ge=1, le=20, description="1 = FGM, more = PGD (each step costs a forward and a backward)"
    )
    share: float = Field(0.2, ge=0, le=1, description="weight of the perturbed loss")
    batch_share: float = Field(1.0, gt=0, le=1, description="share of a batch's histories that are perturbed")
    start_step: int = Field(600, ge=0, description="optimiser steps trained clean before it begins")
    ramp_steps: int = Field(0, ge=0, description="steps over which the radius then grows to its full size")
    words: float = Field(
        0.0,
        ge=0,
        le=10,
        description="radius of δ on the word embeddings of a step's texts, as a share of their norm; 0 = none; for a "
        "text encoder that is trained",
    )

    def strength(self, step: int) -> float:
        """Share of the full radius at an optimiser step; 0 = not perturbed."""
        if not self.enabled or self.share == 0 or step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / max(self.ramp_steps, 1))


class TrustConfig(Section):
    """Who is learned from: a detector of fake users, trained on simulated attacks."""

    enabled: bool = Field(True, description="score every user's new events as windows close")
    doubted: float = Field(
        0.02, ge=0, lt=1, description="share of honest users that may count for less than fully"
    )
    quarantined: float = Field(
        0.002, ge=0, lt=1, description="share of honest users that may be kept out by mistake"
    )
    simulations: int = Field(4, ge=1, le=100, description="simulated attacks of each kind per window")
    windows: int = Field(16, ge=3, description="newest trained windows that the detector learns from")
    refit_windows: int = Field(16, ge=1, description="trained windows after which it learns anew")


class GanConfig(Section):
    """Generated histories that are learned from beside the real ones."""

    enabled: bool = Field(False, description="add generated histories to every window")
    share: float = Field(0.2, gt=0, le=10, description="generated users per real one")
    weight: float = Field(0.3, gt=0, le=1, description="what an event of theirs counts in the loss")


class InfluenceConfig(Section):
    """How much one user, one item or one sequence may weigh in what is learned from a window."""

    enabled: bool = Field(False, description="cap the influence of users and items")
    user_events: float = Field(
        3.0, gt=0, description="a user weighs at most so many times the window's 90th percentile of events"
    )
    item_growth: float = Field(
        4.0, gt=0, description="an item weighs at most so many times what its past lets expect, and"
    )
    item_floor: float = Field(
        10.0, ge=0, description="so many events more, that a new item may be learned at all"
    )
    gradient_ratio: float = Field(
        0.0,
        ge=0,
        description="a sequence's gradient is at most so many times the batch's median; 0 = no limit",
    )


class TextGuardConfig(Section):
    """What a changed item text may do: it is cleaned, and its vector moves only so far from the first one."""

    enabled: bool = Field(True, description="clean texts and hold the vectors of those that change")
    most_degrees: float = Field(
        TextGuard.most_degrees, ge=0, le=180, description="largest angle from the vector of the first text, °"
    )
    most_words: int = Field(
        TextGuard.most_words, ge=1, le=65536, description="words of a text that are read, from its beginning"
    )
    most_repeats: int = Field(
        TextGuard.most_repeats,
        ge=1,
        le=65536,
        description="times that a word of four letters or more may stand in a text; further ones are left out",
    )

    @property
    def guard(self) -> TextGuard | None:
        """The guard as set; None where it is off."""
        guard = TextGuard(self.most_degrees, self.most_words, self.most_repeats)
        return guard if self.enabled else None


class DeepSpeedConfig(Section):
    """How DeepSpeed spreads a model over workers. Its defaults hold for what is not named here."""

    stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="ZeRO: what is divided among the workers; 0 = nothing, 1 = optimiser state, "
        "2 = and gradients, 3 = and weights",
    )
    overlap_comm: bool = Field(
        False, description="reduce gradients while the backward pass still runs (GPUs)"
    )
    reduce_bucket_size: int = Field(
        500_000_000, ge=1, description="gradient elements reduced at a time; fewer take less memory"
    )
    stage3_prefetch_bucket_size: int = Field(
        50_000_000, ge=0, description="stage 3: weight elements fetched ahead"
    )
    stage3_param_persistence_threshold: int = Field(
        100_000, ge=0, description="stage 3: tensors below this many elements stay whole on every worker"
    )
    more: dict[str, Any] = Field(
        {},
        description="any other part of DeepSpeed's configuration, as its documentation writes it; laid over ours",
    )


class GateConfig(Section):
    """What a candidate is examined on, and how much worse it may be."""

    ndcg_tolerance: float = Field(
        0.05, ge=0, lt=1, description="share of the incumbent's NDCG@10 a candidate may lose"
    )
    attacked_ndcg_tolerance: float = Field(
        0.1, ge=0, lt=1, description="share of the incumbent's NDCG@10 under PGD a candidate may lose"
    )
    min_gain_over_popularity: float = Field(
        0.0, ge=0, description="share by which a first model must beat popularity's NDCG@10"
    )
    pgd_epsilon: float = Field(0.1, ge=0, le=10, description="radius of the exam's attack, share of the norm")
    pgd_steps: int = Field(3, ge=1, le=50, description="PGD steps of the exam's attack")
    lift_tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="exposure@10 that the gate's attacks may gain beyond the incumbent's; a quarter of that always",
    )
    push_tolerance: float = Field(
        0.1, ge=0, le=1, description="share of users whom an item nobody asks for may suddenly be shown to"
    )
    min_overlap: float = Field(
        0.05, ge=0, le=1, description="least share of the incumbent's lists that a candidate must keep"
    )
    min_targets: int = Field(
        200, ge=1, description="fewer scorable events than this are no exam: windows are merged"
    )
    max_targets: int = Field(2000, ge=1, description="events examined at most, a fixed sample beyond")
    batch_size: int = Field(32, ge=1, description="histories examined at a time")
    unseen_only: bool = Field(
        True, description="examine only items new to the user, as serving recommends by default"
    )


class TrainingSettings(Section):
    """The continuous learner: when it trains, on what, with how much of the machine."""

    model: ModelConfig = ModelConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    trust: TrustConfig = TrustConfig()
    influence: InfluenceConfig = InfluenceConfig()
    text_guard: TextGuardConfig = TextGuardConfig()
    gan: GanConfig = GanConfig()
    gate: GateConfig = GateConfig()

    text_encoder: str = Field(
        "packaged",
        min_length=1,
        description="'packaged', 'packaged-smollm2', a Hugging Face name, a folder, or a .gguf file",
    )
    encoder_pooling: Literal["auto", "mean", "last"] = Field(
        "auto",
        description="a text's vector from its tokens: their mean, or the last; auto = last if decoder-only",
    )
    index_items: int = Field(
        50_000,
        ge=1000,
        description="catalogues of this many items get an approximate index with each model (extra `large`)",
    )
    finetune: Literal["frozen", "top-n", "lora", "full"] = Field(
        "frozen",
        description="what of the text encoder is trained: nothing, its last layers, low-rank updates, all",
    )
    finetune_layers: int = Field(2, ge=1, le=200, description="layers that 'top-n' trains, from the top")
    finetune_texts_per_step: int = Field(
        256,
        ge=1,
        le=65536,
        description="items whose text a step encodes anew, over all workers; a sample beyond",
    )
    finetune_refresh_epochs: int = Field(
        1, ge=0, le=1000, description="passes between encodings of all texts; 0 = only at the end of a round"
    )
    encoder_lr: float = Field(
        2e-5,
        gt=0,
        le=1,
        description="peak learning rate of the text encoder in the first model; it moves in step with lr",
    )
    lora_rank: int = Field(8, ge=1, le=1024, description="rank of the low-rank updates")
    lora_alpha: int = Field(16, ge=1, le=4096, description="updates are scaled by lora_alpha / lora_rank")
    lora_targets: tuple[str, ...] = Field(
        (), description="names of the linear layers that get updates; none named = all of them"
    )
    mlm_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="passes of masked-language pre-training on catalogue text before all else",
    )
    mlm_lr: float = Field(5e-5, gt=0, le=1, description="peak learning rate of that pre-training")

    num_workers: int = Field(1, ge=1, le=1024, description="Ray Train workers")
    cpus_per_worker: float = Field(
        0.5, gt=0, description="CPUs that Ray reserves per worker (a booking, no limit)"
    )
    use_gpu: bool = Field(False, description="one GPU per worker, NCCL between them")
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="arithmetic; weights and optimiser stay fp32; auto = bf16 where the hardware has it",
    )

    batch_size: int = Field(16, ge=1, description="sequences per optimiser step, over all workers")
    lr: float = Field(4e-3, gt=0, le=1, description="peak learning rate of the first model (AdamW, cosine)")
    window_lr: float = Field(5e-4, gt=0, le=1, description="peak learning rate of fine-tuning on a window")
    warmup_steps: int = Field(30, ge=0, description="steps from 0 to the peak, a tenth of a round at most")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    initial_epochs: int = Field(22, ge=1, description="passes over the windows of the first model")
    epochs_per_window: int = Field(2, ge=1, description="passes over the new windows of a later round")
    overlap: int = Field(
        0, ge=0, description="inputs shared by consecutive chunks of a long row, less than length"
    )
    replay_windows: int = Field(50, ge=0, description="older windows that replayed sequences are drawn from")
    replay_ratio: float = Field(1.0, ge=0, le=100, description="replayed sequences per new one")
    full_softmax_items: int = Field(2_000, ge=0, description="catalogues above this use the sampled softmax")
    negatives: int = Field(1024, ge=1, description="negatives per step of the sampled softmax")

    max_seconds_initial: float = Field(75.0, gt=0, description="longest training of the first model, s")
    max_seconds_per_window: float = Field(20.0, gt=0, description="longest fine-tuning in a round, s")
    initial_threads: int = Field(
        1, ge=0, le=1024, description="threads of a worker for the first model; 0 = its share of the machine"
    )
    threads: int = Field(1, ge=1, le=1024, description="threads of a worker after the first promotion")
    nice: int = Field(10, ge=0, le=19, description="niceness after the first promotion")

    min_initial_windows: int = Field(
        2, ge=2, description="complete windows before the first model: train and exam"
    )
    initial_events: int = Field(
        0, ge=0, description="events in complete windows before the first model; 0 = no matter"
    )
    catalog_timeout_s: float = Field(
        60.0, ge=0, description="longest wait for text vectors once windows are there, s"
    )
    poll_interval_s: float = Field(0.5, gt=0, le=60, description="time between looks for new windows, s")
    popularity_half_life_h: float = Field(
        336.0, gt=0, description="half-life of the counts behind the popularity ranking, hours of event time"
    )

    seed: int = Field(0, ge=0, lt=2**31, description="everything random in training follows from it")
    max_failures: int = Field(
        -1, ge=-1, description="worker failures Ray Train recovers from; -1 = any number"
    )
    keep_checkpoints: int = Field(2, ge=1, description="training checkpoints kept on disk")
    keep_versions: int = Field(
        20, ge=2, description="model bundles kept beside the current and the previous one"
    )

    @property
    def tuned(self) -> str:
        """What of the text encoder is trained, as far as an engine's checkpoint depends on it."""
        depends_on = {
            "top-n": (self.finetune_layers,),
            "lora": (self.lora_rank, *sorted(self.lora_targets)),
        }
        return " ".join(map(str, (self.finetune, *depends_on.get(self.finetune, ()))))

    @model_validator(mode="after")
    def _sizes_fit(self) -> TrainingSettings:
        if self.overlap >= self.model.length:
            raise ValueError(
                f"overlap must be below model.length = {self.model.length}; got overlap = {self.overlap}"
            )
        if self.model.repeats == "excluded" and not self.gate.unseen_only:
            raise ValueError(
                "gate.unseen_only must be true with model.repeats = 'excluded', as a model is not asked what it does "
                "not learn; got gate.unseen_only = false; set model.repeats to 'copied' where users come back to the "
                "same items"
            )
        if self.mlm_epochs and self.finetune == "frozen":
            raise ValueError(
                f"mlm_epochs must be 0 with finetune = 'frozen', as nothing of the text encoder may change; got "
                f"mlm_epochs = {self.mlm_epochs}; set finetune to 'top-n', 'lora' or 'full'"
            )
        return self
