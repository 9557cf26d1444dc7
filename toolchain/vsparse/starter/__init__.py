"""A first recipe for data of one's own: looked at, chosen, written with the reason for every value (`vsparse init`)."""

from vsparse.starter.choose import Recommendation, recommend
from vsparse.starter.survey import DataSurvey, survey
from vsparse.starter.text import recipe_text

__all__ = ["DataSurvey", "Recommendation", "recipe_text", "recommend", "survey"]
