"""Entry points. A script parses its flags, calls the one function that does its work, and gives the answer.

Which function that is, and the rule, stands in `instcls_tf/report/answer.py`.
"""
