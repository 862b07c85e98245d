"""Where the numbers of a configuration must lie; ``_validation`` reads and checks it."""

from typing import Annotated

PositiveInt = Annotated[int, "> 0"]
NonNegativeInt = Annotated[int, ">= 0"]
PositiveFloat = Annotated[float, "> 0"]
NonNegativeFloat = Annotated[float, ">= 0"]
Fraction = Annotated[float, ">= 0", "< 1"]
Probability = Annotated[float, ">= 0", "<= 1"]
PositiveProbability = Annotated[float, "> 0", "<= 1"]
OpenInterval = Annotated[float, "> 0", "< 1"]
