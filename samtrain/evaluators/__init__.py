"""The paper's zero-shot experiments, one per file; all implement `Evaluator`."""

from samtrain.evaluators.automatic import Automatic
from samtrain.evaluators.edges import Edges
from samtrain.evaluators.evaluator import Evaluator, Part, Row
from samtrain.evaluators.fairness import Fairness
from samtrain.evaluators.instances import Instances
from samtrain.evaluators.learning_curve import LearningCurve
from samtrain.evaluators.points import Points
from samtrain.evaluators.proposals import Proposals
from samtrain.evaluators.text import Text

EVALUATORS: dict[str, type[Evaluator]] = {  # by zero_shot.protocol
    "points": Points,
    "proposals": Proposals,
    "instances": Instances,
    "edges": Edges,
    "automatic": Automatic,
    "fairness": Fairness,
    "learning_curve": LearningCurve,
    "text": Text,
}

__all__ = [
    "EVALUATORS", "Automatic", "Edges", "Evaluator", "Fairness", "Instances", "LearningCurve", "Part", "Points", "Proposals",
    "Row", "Text",
]  # fmt: skip
