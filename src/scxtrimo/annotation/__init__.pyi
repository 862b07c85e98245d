from .model import XTrimoGeneAnnotator as XTrimoGeneAnnotator
from .module import XTrimoGeneAnnotatorConfig as XTrimoGeneAnnotatorConfig
from .plan import AnnotationConfig as AnnotationConfig
