"""Five audited runs lie under their claims, and each planted fault is found once.

scripts/proof.sh privacy does so for a hundred, and for five of each fault.
"""

import privacy_proof


def test_five_sound_runs():
  examples, sites = privacy_proof.sound_runs(range(5))
  assert len(examples.bounds) + len(sites.bounds) == 5
  for found in (examples, sites):
    assert not found.refuted, found.told
  # Of sites the audit sees a good part of what there is.
  assert max(sites.bounds) > 0.3


def test_each_planted_fault_is_found():
  faults = privacy_proof.faulty_runs([1000])
  assert len(faults) == 6
  for found in faults:
    assert found.refuted, found.told
    # Too much noise harms nobody: no audit sees it, but who measures it does.
    assert (max(found.bounds) > found.claim) != (found.measured > 1.5), found.told
