from .model import XTrimoGeneAnnotator as XTrimoGeneAnnotator
from .model import annotate_together as annotate_together
from .module import XTrimoGeneAnnotatorConfig as XTrimoGeneAnnotatorConfig
from .training import AnnotationConfig as AnnotationConfig
