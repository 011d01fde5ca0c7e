"""Report: tables, claims, figures and pages that a reader of ``results/`` opens.

Decides no number of a trained model. May import all other rooms of the study but notebooks.
"""
