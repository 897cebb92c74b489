"""Reading compiled modules: types, loops, groups of devices."""

import pytest

from rlhf_jax.plan import hlo
from rlhf_jax.plan.chips import PlanError

LOOP = """HloModule m

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%next, %x)
}

%condition (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(24)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(f)/update/while"}
  ROOT %r = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
}
"""


def loop_of(text):
  module = hlo.parse(text)
  return module, module[module.entry]["loop"], module[module.entry]


def test_types_layouts_and_names():
  module, loop, _ = loop_of(LOOP)
  assert module.entry == "main" and list(module.computations) == [
      "body", "condition", "main"]
  assert [a.num_bytes for a in loop.arrays] == [4, 128]
  assert loop.op_name == "jit(f)/update/while"
  result = module["main"].root.arrays[0]
  assert result.num_bytes == 128 and result.hbm_bytes == 0  # memory on chip


def test_a_loop_runs_to_the_constant_of_its_condition():
  assert hlo.trip_count(*loop_of(LOOP)) == 24


def test_a_loop_that_may_end_early_counts_to_its_bound():
  both = """%limit = s32[]{:T(128)} constant(24)
  %done = pred[]{:T(512)} constant(false)
  %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
  ROOT %both = pred[]{:T(512)} and(%lt, %done)"""
  text = LOOP.replace("%limit = s32[]{:T(128)} constant(24)", "").replace(
      "ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT", both)
  assert hlo.trip_count(*loop_of(text)) == 24


def test_a_counter_may_start_later_and_go_in_larger_steps():
  text = LOOP.replace("%one = s32[]{:T(128)} constant(1)",
                      "%one = s32[]{:T(128)} constant(2)")
  assert hlo.trip_count(*loop_of(text)) == 12
  text = LOOP.replace("%zero = s32[]{:T(128)} constant(0)",
                      "%zero = s32[]{:T(128)} constant(1)")
  assert hlo.trip_count(*loop_of(text)) == 23


def test_the_compilers_own_count_goes_first():
  text = LOOP.replace("body=%body,", 'body=%body, backend_config='
                      '{"known_trip_count":{"n":"7"}},')
  assert hlo.trip_count(*loop_of(text)) == 7


def test_a_loop_without_a_bound_is_refused():
  text = LOOP.replace("s32[]{:T(128)} constant(24)", "s32[]{:T(128)} iota()")
  with pytest.raises(PlanError, match="no bound .* of the loop loop"):
    hlo.trip_count(*loop_of(text))


def collective(groups):
  return hlo.Instruction("c", "all-reduce", "f32[]", (), groups, False)


@pytest.mark.parametrize("groups, members, axes", [
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [0, 4], (0,)),
    ("replica_groups=[4,2]<=[8]", [0, 1], (2,)),
    ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6], (0, 1)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use=true",
     [0, 2, 4, 6], (0, 1)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1','axis_0'}",
     list(range(8)), (0, 1, 2)),
    ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
     [0, 1, 2, 3], (1, 2)),
    ("replica_groups={}", list(range(8)), (0, 1, 2)),
    ("source_target_pairs={{0,0},{1,3},{3,1}}", [1, 3], (1,)),
])
def test_groups_name_the_axes_along_which_they_differ(groups, members, axes):
  found = hlo.first_group(collective(groups), 8)
  assert found == members
  assert hlo.varying_axes(found, (2, 2, 2)) == axes


def test_groups_written_in_an_unknown_way_are_refused():
  with pytest.raises(PlanError, match="groups of the collective c"):
    hlo.first_group(collective("replica_groups=mesh['a'=8] {'a':(2)4}"), 8)
