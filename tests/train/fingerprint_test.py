"""What a run is bound to beside its settings: a changed prompt is noticed, an old run goes on."""

import json

import pytest

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import ask
from fedmedjax.train import fingerprint as inputs
from fedmedjax.types import InputError, SiteCorpus


def fingerprint(definitions: dict) -> dict:
  corpus = SiteCorpus('ward', ('treatment',), (), (), {}, {}, definitions)
  part = TaskData(ask('ner', corpus), None, (), (), (), ())
  return {'notes of site ward': inputs._notes(SiteData('ward', ('treatment',), (part,), {}))}


def test_a_prompt_that_changed_is_noticed(tmp_path):
  begun = fingerprint({})
  inputs.check_inputs(tmp_path, begun)
  inputs.compare_inputs(tmp_path, begun)
  with pytest.raises(InputError, match='notes of site ward: its prompts changed since'):
    inputs.compare_inputs(tmp_path, fingerprint({'treatment': 'a therapy or drug'}))
  # A run that began before prompts were kept.
  del begun['notes of site ward']['its prompts']
  (tmp_path / inputs.FILE).write_text(json.dumps(begun))
  inputs.compare_inputs(tmp_path, fingerprint({'treatment': 'a therapy or drug'}))
