"""A first recipe for data of one's own: looked at, chosen, written with the reason for every value (`vsparse init`)."""

from vsparse.starter.choose import Recommendation, recommend
from vsparse.starter.survey import DataSurvey, data_name, survey
from vsparse.starter.text import SCHEMA, recipe_text

__all__ = ["SCHEMA", "DataSurvey", "Recommendation", "data_name", "recipe_text", "recommend", "survey"]
