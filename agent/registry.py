"""Every part that a config can name, one line each: kind -> name -> "module:Class". Imports nothing heavy.

A user's own part needs no line here: `kind: my_package.my_module:MyClass` works wherever a name does.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from lifelong.agent.errors import ConfigError, EnvError, LifelongError, unknown_name
from lifelong.agent.schedules import Ramp, ramp_problem
from lifelong.envs.border import blame
from lifelong.envs.options import Range, Share, Weight, brief, parameters_of, problem
from lifelong.envs.registry import ENVIRONMENTS, import_part

REGISTRY: dict[str, dict[str, str]] = {
    "env": ENVIRONMENTS,
    "schedule": {
        "sequential": "lifelong.envs.stream:Sequential",
        "interleaved": "lifelong.envs.stream:Interleaved",
        "random": "lifelong.envs.stream:Random",
        "blurry": "lifelong.envs.stream:Blurry",
        "drift": "lifelong.envs.stream:Drift",
        "curriculum": "lifelong.envs.curriculum:Curriculum",
        "power_law": "lifelong.envs.recurring:PowerLaw",
        "visits": "lifelong.envs.recurring:Visits",
        "learning_progress": "lifelong.envs.progress:LearningProgress",
    },
    "encoder": {
        "identity": "lifelong.agent.modules.encoders:Identity",
        "mlp": "lifelong.agent.modules.encoders:MLP",
        "cnn": "lifelong.agent.modules.images:CNN",
        "cycle": "lifelong.agent.modules.encoders:Cycle",
        "depth_recurrent": "lifelong.agent.modules.encoders:DepthRecurrent",
        "nature_cnn": "lifelong.agent.modules.images:NatureCNN",
        "impala_cnn": "lifelong.agent.modules.images:ImpalaCNN",
    },
    "cell": {
        "block_recurrent": "lifelong.agent.cells.block_recurrent:BlockRecurrent",
        "brc": "lifelong.agent.cells.brc:BRC",
        "delta": "lifelong.agent.cells.delta:Delta",
        "diagonal_gru": "lifelong.agent.cells.diagonal_gru:DiagonalGRU",
        "diagonal_lstm": "lifelong.agent.cells.diagonal_lstm:DiagonalLSTM",
        "elstm": "lifelong.agent.cells.elstm:ELSTM",
        "ensemble": "lifelong.agent.cells.ensemble:Ensemble",
        "gateloop": "lifelong.agent.cells.gateloop:GateLoop",
        "gru": "lifelong.agent.cells.gru:GRU",
        "hgrn": "lifelong.agent.cells.hgrn:HGRN",
        "indrnn": "lifelong.agent.cells.indrnn:IndRNN",
        "lattice": "lifelong.agent.cells.lattice:Lattice",
        "leaky": "lifelong.agent.cells.leaky:Leaky",
        "linear_attention": "lifelong.agent.cells.linear_attention:LinearAttention",
        "longhorn": "lifelong.agent.cells.longhorn:Longhorn",
        "lru": "lifelong.agent.cells.lru:LRU",
        "lstm": "lifelong.agent.cells.lstm:LSTM",
        "memory_network": "lifelong.agent.cells.memory_network:MemoryNetwork",
        "min_gru": "lifelong.agent.cells.min_gru:MinGRU",
        "min_lstm": "lifelong.agent.cells.min_lstm:MinLSTM",
        "nbrc": "lifelong.agent.cells.nbrc:NBRC",
        "plrnn": "lifelong.agent.cells.plrnn:PLRNN",
        "qrnn": "lifelong.agent.cells.qrnn:QRNN",
        "retnet": "lifelong.agent.cells.retnet:RetNet",
        "rg_lru": "lifelong.agent.cells.rg_lru:RGLRU",
        "rnn": "lifelong.agent.cells.rnn:RNN",
        "rnn_of_rnns": "lifelong.agent.cells.rnn_of_rnns:RNNOfRNNs",
        "rtu": "lifelong.agent.cells.rtu:RTU",
        "scrn": "lifelong.agent.cells.scrn:SCRN",
        "sru": "lifelong.agent.cells.sru:SRU",
        "stack": "lifelong.agent.cells.stack:Stack",
        "tkan": "lifelong.agent.cells.tkan:TKAN",
        "warp": "lifelong.agent.cells.warp:WARP",
    },
    "gradient": {
        "bptt": "lifelong.agent.gradients.bptt:BPTT",
        "rtrl": "lifelong.agent.gradients.rtrl:RTRL",
        "online_rtrl": "lifelong.agent.gradients.online_rtrl:OnlineRTRL",
        "immediate": "lifelong.agent.gradients.immediate:Immediate",
        "exact": "lifelong.agent.gradients.exact:Exact",
        "snap1": "lifelong.agent.gradients.snap1:SnAp1",
        "snap2": "lifelong.agent.gradients.snap2:SnAp2",
        "uoro": "lifelong.agent.gradients.uoro:UORO",
        "kf_rtrl": "lifelong.agent.gradients.kf_rtrl:KFRTRL",
        "rflo": "lifelong.agent.gradients.rflo:RFLO",
        "eprop": "lifelong.agent.gradients.eprop:EProp",
        "dsf": "lifelong.agent.gradients.dsf:DSF",
        "gtf": "lifelong.agent.gradients.gtf:GTF",
    },
    "objective": {
        "actor_critic": "lifelong.agent.objectives.actor_critic:ActorCritic",
        "ppo": "lifelong.agent.objectives.ppo:PPO",
        "q_learning": "lifelong.agent.objectives.q_learning:QLearning",
        "supervised": "lifelong.agent.objectives.supervised:Supervised",
        "td": "lifelong.agent.objectives.td:TD",
        "q_lambda": "lifelong.agent.objectives.q_lambda:QLambda",
        "qrc_lambda": "lifelong.agent.objectives.qrc_lambda:QRCLambda",
        "ac_lambda": "lifelong.agent.objectives.ac_lambda:ACLambda",
    },
    "strategy": {
        "finetune": "lifelong.agent.strategies.finetune:Finetune",
        "ewc": "lifelong.agent.strategies.ewc:EWC",
        "si": "lifelong.agent.strategies.si:SI",
        "mas": "lifelong.agent.strategies.mas:MAS",
        "functional": "lifelong.agent.strategies.functional:Functional",
        "lwf": "lifelong.agent.strategies.lwf:LwF",
        "l2": "lifelong.agent.strategies.l2:L2",
        "activity": "lifelong.agent.strategies.activity:Activity",
        "l2_init": "lifelong.agent.strategies.l2_init:L2Init",
        "agem": "lifelong.agent.strategies.agem:AGEM",
        "clear": "lifelong.agent.strategies.clear:CLEAR",
        "der": "lifelong.agent.strategies.der:DER",
        "der_pp": "lifelong.agent.strategies.der_pp:DERPlusPlus",
        "perfect_memory": "lifelong.agent.strategies.perfect_memory:PerfectMemory",
        "pseudo_rehearsal": "lifelong.agent.strategies.pseudo_rehearsal:PseudoRehearsal",
        "rer": "lifelong.agent.strategies.rer:RER",
        "uer": "lifelong.agent.strategies.uer:UER",
        "er": "lifelong.agent.strategies.er:ER",
        "gpm": "lifelong.agent.strategies.gpm:GPM",
        "owm": "lifelong.agent.strategies.owm:OWM",
        "adam_nscl": "lifelong.agent.strategies.adam_nscl:AdamNSCL",
        "recurrent_projection": "lifelong.agent.strategies.recurrent_projection:RecurrentProjection",
        "hlop": "lifelong.agent.strategies.hlop:HLOP",
        "trgp": "lifelong.agent.strategies.trgp:TRGP",
        "ogd": "lifelong.agent.strategies.ogd:OGD",
        "packnet": "lifelong.agent.strategies.packnet:PackNet",
        "dst": "lifelong.agent.strategies.dst:DST",
        "progressive": "lifelong.agent.strategies.progressive:Progressive",
        "componet": "lifelong.agent.strategies.componet:CompoNet",
        "hypernet": "lifelong.agent.strategies.hypernet:Hypernet",
        "sharp": "lifelong.agent.strategies.sharp:Sharp",
        "nmc": "lifelong.agent.strategies.nmc:NMC",
        "refresh": "lifelong.agent.strategies.refresh:Refresh",
        "rebasin": "lifelong.agent.strategies.rebasin:Rebasin",
        "unf": "lifelong.agent.strategies.unf:UNF",
        "ideal_continual_learner": "lifelong.agent.strategies.ideal_continual_learner:IdealContinualLearner",
        "explore": "lifelong.agent.strategies.explore:Explore",
        "recode": "lifelong.agent.strategies.recode:Recode",
        "normalize_rewards": "lifelong.agent.strategies.normalize_rewards:NormalizeRewards",
        "shrink_perturb": "lifelong.agent.strategies.shrink_perturb:ShrinkPerturb",
        "weight_clipping": "lifelong.agent.strategies.weight_clipping:WeightClipping",
        "freeze_at": "lifelong.agent.strategies.freeze_at:FreezeAt",
        "reset_on_task": "lifelong.agent.strategies.reset_on_task:ResetOnTask",
        "redo": "lifelong.agent.strategies.redo:ReDo",
        "continual_backprop": "lifelong.agent.strategies.continual_backprop:ContinualBackprop",
        "upgd": "lifelong.agent.strategies.upgd:UPGD",
        "trac": "lifelong.agent.strategies.trac:Trac",
        "c_chain": "lifelong.agent.strategies.c_chain:CChain",
        "cpr": "lifelong.agent.strategies.cpr:CPR",
        "hare_tortoise": "lifelong.agent.strategies.hare_tortoise:HareTortoise",
        "spectral": "lifelong.agent.strategies.spectral:Spectral",
        "parseval": "lifelong.agent.strategies.parseval:Parseval",
    },
    "detector": {
        "cusum": "lifelong.agent.detectors.cusum:CUSUM",
        "distribution_shift": "lifelong.agent.detectors.distribution_shift:DistributionShift",
        "one_class": "lifelong.agent.detectors.one_class:OneClass",
        "nearest_mean": "lifelong.agent.detectors.nearest_mean:NearestMean",
        "recode_novelty": "lifelong.agent.detectors.recode_novelty:RecodeNovelty",
    },
    "optimizer": {
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "sgd": "torch.optim:SGD",
        "rmsprop": "torch.optim:RMSprop",
        "schedule_free": "lifelong.agent.optimizers.schedule_free:ScheduleFree",
        "nt_asgd": "lifelong.agent.optimizers.nt_asgd:NTASGD",
        "obgd": "lifelong.agent.optimizers.obgd:ObGD",
        "intentional": "lifelong.agent.optimizers.intentional:Intentional",
        "autostep": "lifelong.agent.optimizers.autostep:Autostep",
    },
}


#: what a part of each kind must be a subclass of
BASES = {
    "env": "lifelong.envs.base:BatchedEnv",
    "schedule": "lifelong.envs.stream:Schedule",
    "encoder": "lifelong.agent.modules.encoders:Encoder",
    "cell": "lifelong.agent.cells.base:Cell",
    "gradient": "lifelong.agent.gradients.base:GradientEngine",
    "objective": "lifelong.agent.objectives.base:Objective",
    "strategy": "lifelong.agent.strategies.base:Strategy",
    "detector": "lifelong.agent.detectors.base:Detector",
    "optimizer": "torch.optim:Optimizer",
}

#: ranges of torch's optimisers, whose annotations have none
_BELOW_ONE = Annotated[float, Range(0.0, 1.0 - 1e-9)]
_RANGES: dict[str, Any] = {
    "lr": Annotated[float, Range(0.0, 1e3)],
    "momentum": Share,
    "dampening": Share,
    "alpha": Share,
    "betas": tuple[_BELOW_ONE, _BELOW_ONE],
    "weight_decay": Weight,
    "eps": Annotated[float, Range(0.0, 1.0)],
}


def check_name(kind: str, name: str) -> None:
    """Check that `name` is registered under `kind` or has the form `module:Attr`; imports nothing.

    Raises:
        ConfigError: it is neither.
    """
    if ":" not in name and name not in REGISTRY[kind]:
        raise ConfigError(unknown_name(kind, name, REGISTRY[kind]) + ", or module:Attr for your own")


def is_foreign(spec: Mapping[str, Any]) -> bool:
    """Whether a part is the user's own."""
    return ":" in spec["kind"] and not spec["kind"].startswith("lifelong.")


def load(kind: str, name: str) -> Any:
    """The class that `name` stands for among the parts of `kind`.

    Importing a module of the user's own runs its code; nothing is constructed before it is known to be a part.

    Raises:
        ConfigError: unknown name, a `module:Attr` that cannot be imported, or something that is no part of this kind.
    """
    check_name(kind, name)
    if kind == "cell" and name.startswith("torchrecurrent:"):
        return importlib.import_module("lifelong.agent.cells.torchrecurrent").adapted(name.partition(":")[2])
    base_module, _, base_name = BASES[kind].partition(":")
    try:
        part = import_part(kind, name, REGISTRY[kind])
    except EnvError as error:
        raise ConfigError(str(error)) from error
    base = getattr(importlib.import_module(base_module), base_name)
    if not isinstance(part, type) or not issubclass(part, base):
        what = f"a {type(part).__name__}" if not isinstance(part, type) else f"the class {part.__name__}"
        raise ConfigError(f"{kind} {name!r} is {what}, no subclass of {BASES[kind].replace(':', '.')}")
    return part


def options_of(part: Any) -> dict[str, inspect.Parameter]:
    """The options that a config may give to a part: the arguments of its `__init__` (and its bases') with a default."""
    return {name: parameter for name, (parameter, _) in parameters_of(part).items()}


def annotated(kind: str, part: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The options of a part (see `options_of`), each with what it may be."""
    ranges = _RANGES if kind == "optimizer" else {}
    return {name: (parameter, ranges.get(name, hint)) for name, (parameter, hint) in parameters_of(part).items()}


def scheduled(kind: str, part: Any) -> tuple[str, ...]:
    """The options of a part that may be a schedule in place of a number (see `agent.schedules`)."""
    found: tuple[str, ...] = ("lr",) if kind == "optimizer" else getattr(part, "SCHEDULED", ())
    return found


def check_options(kind: str, name: str, part: Any, options: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """Check a part's options by name, type and range before anything is built.

    Raises:
        ConfigError: unknown option, one that the runtime gives itself, or a value that its annotation does not allow.
    """
    known = {option: both for option, both in annotated(kind, part).items() if option not in context}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(unknown_name(f"option of {kind} {name}", option, known))
        parameter, hint = known[option]
        if value is None and parameter.default is None:
            continue
        if isinstance(value, Mapping) and option in scheduled(kind, part):
            wrong = ramp_problem(value, hint)
            if wrong is not None:
                raise ConfigError(f"{kind} {name}: {option} {wrong}")
            continue
        wrong = problem(hint, value)
        if wrong is not None:
            raise ConfigError(f"{kind} {name}: {option} is {brief(value)}; it must be {wrong}")


def build(kind: str, spec: Mapping[str, Any], *args: Any, **context: Any) -> Any:
    """Build the part that `spec` (`{"kind": name, option: value, ...}`) describes.

    `args` are the positional arguments that the runtime gives to every part of the kind; `context` are keyword
    arguments that it gives besides the user's options.

    Raises:
        ConfigError: unknown name or option, or a value that the part refuses.
    """
    options = {key: value for key, value in spec.items() if key != "kind"}
    name = spec["kind"]
    part = load(kind, name)
    check_options(kind, name, part, options, context)
    for option in scheduled(kind, part):
        if isinstance(options.get(option), Mapping):
            options[option] = Ramp.of(options[option]).at(0)
    try:
        return part(*args, **options, **context)
    except LifelongError:
        raise
    except (Exception, SystemExit) as error:
        told = blame(error) if is_foreign(spec) else " ".join(str(error).split())
        raise ConfigError(f"{kind} {name}: {told}") from error
