"""scripts/aot.py without its environment: what it reads of XLA, its table and its refusals."""

import json
import stat
import sys
from pathlib import Path

import pytest

from fedmedjax.types import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
import aot  # noqa: E402

from absent import devices, hlo, table  # noqa: E402

# Two layers of a scan; a fusion whose result is what `silu` of llama.py's line 10 made, carried by
# the loop; a gathered kernel; an asynchronous sum, whose start names its operand too.
PROGRAM = '''HloModule jit_round_fn

FileNames
1 "/home/someone/fedmedjax/fedmedjax/model/llama.py"
2 "/lib/jax/nn.py"

FunctionNames
1 "silu"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10}
2 {file_name_id=2 function_name_id=1 line=99 end_line=99}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (parameter.1: f32[4,8]) -> f32[4,8] {
  %parameter.1 = f32[4,8] parameter(0)
  ROOT %sine = f32[4,8] sine(%parameter.1), metadata={op_name="silu/mul" stack_frame_id=2}
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %fusion.1 = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %copy.1 = f32[4,8]{1,0} copy(%fusion.1)
  %gathered = bf16[8,16]{1,0} all-gather(%x), dimensions={0}
  %start = (f32[4,8]{1,0}, f32[4,8]{1,0}) all-reduce-start(%copy.1), to_apply=%add
  %done = f32[4,8]{1,0} all-reduce-done(%start)
  ROOT %all = f32[2]{0} all-reduce(%x), to_apply=%add
}
'''
ASSIGNMENT = '''BufferAssignment:
allocation 0: size 128, parameter 0
 value: <1 x @0> (size=128,offset=0): f32[4,8]{1,0}
allocation 1: size 5000, preallocated-temp:
 value: <2 fusion.1 @0> (size=128,offset=0): f32[4,8]{1,0}
 value: <3 copy.1 @0> (size=128,offset=0): f32[4,8]{1,0}
 value: <4 gathered @0> (size=256,offset=128): bf16[8,16]{1,0}
 value: <5 wide @0> (size=512,offset=384): f32[16,8]{1,0}
 value: <6 tiled @0> (size=768,offset=896): bf16[3,8,16]{2,1,0}
 value: <7 stacked @0> (size=512,offset=1664): bf16[2,8,16]{2,1,0}
'''
LIVE = '''BufferLiveRange:
 x: 0-9
 Live ranges at 5 (peak):
    copy.1: 128 bytes
    gathered: 256 bytes
 Stack trace breakdown
    wide: 512 bytes
'''


def test_buffers_are_traced_to_the_line_that_made_them():
  """`copy.1` holds what the fusion made, on a line of JAX called by llama.py's line 10."""
  found = hlo.fullest(hlo.parsed(PROGRAM, 'fedmedjax'), ASSIGNMENT, LIVE)
  assert [(one.bytes, one.shape, one.source) for one in found] == [
    (256, 'bf16[8,16]', ''), (128, 'f32[4,8]', 'fedmedjax/model/llama.py:10')]
  assert found[1].operation == 'silu/mul'


def test_collectives_are_counted_by_their_results():
  assert hlo.collectives(PROGRAM) == {
    'all-gather': (1, 8 * 16 * 2), 'all-reduce': (2, 4 * 8 * 4 + 2 * 4)}


def test_copies_of_the_base_are_told_from_the_base():
  """Kernels [8, 16] in 16 bits, two layers: [2, 8, 16] is the base, f32 wider, [3, ...] tiled."""
  found = hlo.base_copies(ASSIGNMENT, [(8, 16)], layers=2, width=2)
  assert found == hlo.BaseCopies(('bf16[3,8,16]',), ('f32[16,8]',))
  assert hlo.base_copies(ASSIGNMENT, [(8, 32)], layers=2, width=2) == ((), ())


def test_a_card_is_described_by_its_data_sheet():
  target = devices.h100_target()
  assert 'core_count: 132' in target and 'memory_bandwidth: 3350000000000' in target
  assert target.count('{') == target.count('}')


@pytest.mark.parametrize(
  'name', ['h200:1', 'h100:2x2', 'h100:0', 'v5e:0x2', 'v5e', 'v5e:', 'v5e:2x', ''])
def test_topologies_that_there_are_not(name):
  with pytest.raises(InputError, match='h100:1 or h100:8'):
    devices.topology(name)


def test_the_environment_comes_before_jax(tmp_path):
  """A later one would change nothing, and the program would be that of a CPU."""
  with pytest.raises(RuntimeError, match='before JAX is imported'):
    devices.prepare_environment(devices.topology('v5e:2x4'), tmp_path, 'x', {})


@pytest.mark.parametrize('arguments, said', [
  (['--config=fedmedjax:quickstart'], '--topology is missing'),
  (['--config=fedmedjax:quickstart', '--topology=moon:1'], '--topology=moon:1'),
  (['--config=fedmedjax:quickstart', '--topology=h100:1', '--program=train'], 'program'),
  (['--config=fedmedjax:quickstart', '--topology=h100:1', '--json=/nowhere/a.json'], 'folder'),
  (['--config=fedmedjax:quickstart', '--topology=h100:1', f'--dump={__file__}'], 'empty folder'),
  (['--config=fedmedjax:quickstart', '--topology=h100:1', '--program=decode', '--estimate'],
   'not --program=decode'),
  (['--table', '--out=rows.jsonl', '--estimates', '--list'], 'without --list'),
  (['--table'], '--out is missing'), (['--table=false', '--out=rows.jsonl'], '--table=false'),
  (['--table', '--out=/nowhere/rows.jsonl', '--list'], '--out=/nowhere/rows.jsonl'),
  (['--table', '--out=rows.jsonl', '--list', '--only=h100,v7'], '--only=v7: no row'),
  (['--table', '--out=rows.jsonl', '--list', '--minutes=-1'], '--minutes=-1'),
  (['--table', '--out=rows.jsonl', '--estimates'], '--out=rows.jsonl: no such round'),
  (['--table', '--out=rows.jsonl', '--list', '--page=/nowhere.md'], '--page=/nowhere.md'),
  (['--table', '--out=rows.jsonl', '--list', f'--page={table.__file__}'], 'each once')])
def test_bad_input_is_one_line(arguments, said, capsys):
  assert aot.main(['aot.py', *arguments]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1


PLANTED = '''import json, pathlib, sys
words = dict(word[2:].partition('=')[::2] for word in sys.argv[1:])
if words['sites'] == '3':
  sys.exit('error: planted')
row = {'estimated_gib': float(words['config.fed.chunk'])} if 'estimate' in words else {
  'refused': 'too large'} if words['sites'] == '16' else {
  'peak_gib': 2.0, 'device_gib': 80, 'arguments_gib': 1.0, 'compile_seconds': 3.0, 'chunk': 4,
  'remat': 'none', 'estimated_gib': 0.5}
pathlib.Path(words['json']).write_text(json.dumps(row))
'''


def test_the_table_goes_on_where_it_stopped(tmp_path):
  """Of four rows one fails and is tried again; a refusal is a row, since it is an answer."""
  program = tmp_path / 'scripts' / 'planted.py'
  program.parent.mkdir()
  program.write_text(PLANTED)
  program.chmod(stat.S_IRWXU)
  out, said = tmp_path / 'rows.jsonl', []
  only = ('round/llama31_8b/h100/',)

  def compile_missing(**more):
    values = {'minutes': 0, 'listing': False} | more
    table.compile_missing(program, out, only, say=said.append, **values)

  compile_missing(listing=True)
  assert said == [f'round/llama31_8b/h100/{count}' for count in (1, 3, 8, 16)]
  with pytest.raises(RuntimeError, match='1 rows failed: round/llama31_8b/h100/3'):
    compile_missing()
  assert '  failed: error: planted' in said and '  refused: too large' in said
  assert sorted(table.read(out)) == [f'round/llama31_8b/h100/{count}' for count in (1, 16, 8)]
  said.clear()
  compile_missing(listing=True)
  assert said == ['round/llama31_8b/h100/3']
  table.estimate_anew(program, out, (), said.append)
  assert said[1:] == [f'round/llama31_8b/h100/{count}: 0.500 GiB, now 4.000 of 1.000'
                      for count in (1, 8)]
  assert [row.get('estimated_gib') for row in table.read(out).values()] == [4.0, 4.0, None]
  out.write_text(out.read_text() + json.dumps({'topology': 'h100:1'}) + '\n')
  with pytest.raises(InputError, match=r'rows.jsonl:4: not a row'):
    table.read(out)
