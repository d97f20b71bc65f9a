"""Named one-line breakages of the code, each with the test that must fail.

`python tests/mutations.py [NAME ...]` prints which were caught; `test_mutations.py` runs them. Each mutation
edits a copy of the package, and its test runs in a child forked from a process that has the heavy imports already and
no thread: a fresh interpreter for each would take most of the time. As a control, all the tests must pass on an
unedited copy, for a test that always fails there would seem to catch everything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 60
MAX_TRIES = 2
"""Of a test that hangs, before it is tried from an interpreter of its own."""
IS_ALONE = "HEADRACE_MUTATION_ALONE"
NUM_AT_ONCE = 2  # most tests wait for processes half of their time
FAILED = "failed.txt"
CONTROL = "(no edit: every test passes)"


class Mutation(NamedTuple):
    """In `file`, `old` (which stands there once) becomes `new`; then `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "slice a slot after its finalizer was set",
        "loader/slots.py",
        "        finalizer.atexit = False\n        return rows, False",
        "        finalizer.atexit = False\n        return rows[:], False",
        "test_slots.py::test_a_slot_is_used_again_after_its_last_view_died_and_not_before",
    ),
    Mutation(
        "give a slot back when it is lent",
        "loader/slots.py",
        "        finalizer.atexit = False\n",
        "        finalizer()\n",
        "test_contract.py::test_every_loader_keeps_the_contract[threads]",
    ),
    Mutation(
        "lend slots without bound",
        "loader/slots.py",
        "if self.num_lent >= self._max_lent:",
        "if False:",
        "test_slots.py::test_batches_held_beyond_the_bound_are_private_copies",
    ),
    Mutation(
        "ignore the rank",
        "loader/order.py",
        "rank=self.rank,",
        "rank=0,",
        "test_loader.py::test_ranks_share_every_global_batch_between_them",
    ),
    Mutation(
        "draw without the epoch",
        "loader/order.py",
        "draws(self.seed, epoch, ids,",
        "draws(self.seed, 0, ids,",
        "test_contract.py::test_augmentation_differs_between_epochs_from_a_cache_too",
    ),
    Mutation(
        "draw by position instead of id",
        "loader/order.py",
        "draws(self.seed, epoch, ids,",
        "draws(self.seed, epoch, positions,",
        "test_loader.py::test_draws_follow_the_id_and_not_the_position",
    ),
    Mutation(
        "give copies of an id the same draws",
        "loader/order.py",
        "positions if self.sampler.with_replacement else 0",
        "0",
        "test_loader.py::test_copies_of_an_id_in_an_epoch_have_draws_of_their_own",
    ),
    Mutation(
        "return a batch before all its tasks have ended",
        "loader/job.py",
        "last = self._remaining == 0",
        "last = True",
        "test_loader.py::test_a_batch_is_handed_over_only_when_its_last_sample_is_made",
    ),
    Mutation(
        "swallow a sample's failure",
        "loader/job.py",
        "job.failures.append((start + made, error))",
        "pass",
        "test_loader.py::test_a_failure_arrives_at_its_position_as_itself",
    ),
    Mutation(
        "raise the last of a batch's failures",
        "loader/job.py",
        "return min(failures,",
        "return max(failures,",
        "test_loader.py::test_of_two_failures_in_a_batch_the_first_row_wins_whichever_came_first",
    ),
    Mutation(
        "reuse an abandoned batch's slot while it is written to",
        "loader/loader.py",
        "                self._wait(job)  # a slot may be written to until its last task has ended\n",
        "",
        "test_loader.py::test_an_abandoned_batch_is_waited_for_before_its_slot_is_used_again",
    ),
    Mutation(
        "count batches fetched ahead in the state",
        "loader/loader.py",
        "return make_state(self.order, *self._handed)",
        "return make_state(self.order, *(self._to_plan or self._handed))",
        "test_loader.py::test_the_state_counts_batches_handed_over_not_batches_made_ahead",
    ),
    Mutation(
        "allow two live iterators",
        "loader/loader.py",
        "if live is not None and not live.finished:",
        "if False:",
        "test_loader.py::test_a_second_live_iterator_is_refused_until_the_first_is_dropped",
    ),
    Mutation(
        "make ahead after the last epoch",
        "loader/loader.py",
        "if self._read_ahead and not known_last else None",
        "if self._read_ahead else None",
        "test_loader.py::test_nothing_is_made_after_the_known_last_epoch",
    ),
    Mutation(
        "leave a collected loader's threads running",
        "loader/loader.py",
        "weakref.finalize(self, executor.close, EXIT_LIMIT_S)",
        "weakref.finalize(self, int)",
        "test_loader.py::test_a_collected_loader_ends_its_threads",
    ),
    Mutation(
        "continue another seed's state",
        "loader/state.py",
        '("seed", order.seed), ',
        "",
        "test_loader.py::test_a_state_of_another_order_is_refused",
    ),
    Mutation(
        "drop the wait for the copy",
        "prefetch.py",
        "            self._streams.wait(item.event)\n",
        "",
        "test_prefetch.py::test_every_batch_is_copied_recorded_waited_for_and_kept_before_the_consumer_has_it",
    ),
    Mutation(
        "drop the guard of the consumer's memory",
        "prefetch.py",
        "            map_tensors(self._keep, item.batch)\n",
        "",
        "test_prefetch.py::test_every_batch_is_copied_recorded_waited_for_and_kept_before_the_consumer_has_it",
    ),
    Mutation(
        "record the event before the stage",
        "prefetch.py",
        "                    if stage is not None:\n                        moved = stage(moved)\n"
        "                    self.ready.put(_Ready(moved, streams.record(), state))\n",
        "                    event = streams.record()\n                    moved = stage(moved) if stage else moved\n"
        "                    self.ready.put(_Ready(moved, event, state))\n",
        "test_prefetch.py::test_the_stage_runs_on_the_side_stream_before_the_event",
    ),
    Mutation(
        "prefetch without bound",
        "prefetch.py",
        "                self._room.acquire()\n",
        "",
        "test_prefetch.py::test_no_more_than_num_batches_are_made_ahead",
    ),
    Mutation(
        "lose the loader's failure in the prefetcher",
        "prefetch.py",
        "            self.ready.put(_Failed(error))",
        "            self.ready.put(None)",
        "test_prefetch.py::test_a_failure_of_the_loader_reaches_the_consumer_at_its_position",
    ),
    Mutation(
        "forget the state of the batch handed over",
        "prefetch.py",
        "            batch, self._state = item.batch, item.state\n",
        "            batch = item.batch\n",
        "test_contract.py::test_a_run_resumed_in_the_middle_of_an_epoch_equals_one_that_was_not[1-cpu]",
    ),
    Mutation(
        "leave cached pixels writable",
        "cache/private_store.py",
        "            sample.flags.writeable = False\n",
        "            pass\n",
        "test_cache.py::test_cached_pixels_cannot_be_written_to",
    ),
    Mutation(
        "load an id twice at once",
        "cache/claims.py",
        "            held.wait()\n",
        "            released = held\n            break\n",
        "test_cache.py::test_a_load_in_flight_is_waited_for_and_never_begun_twice",
    ),
    Mutation(
        "return a cached augmentation",
        "loader/sample.py",
        "            self.transform(sample, draws, row, *self._own())\n",
        "            made = self.__dict__.setdefault('made', {})\n"
        "            id in made or self.transform(sample, draws, row, *self._own())\n"
        "            row[...] = made.setdefault(id, row.copy())\n",
        "test_contract.py::test_augmentation_differs_between_epochs_from_a_cache_too",
    ),
    Mutation(
        "keep a view of scratch memory in the cache",
        "loader/read.py",
        "        if not self._borrow:\n            return Scratch()\n",
        "",
        "test_contract.py::test_scheduling_never_changes_a_byte",
    ),
    Mutation(
        "evict from a pinned cache",
        "cache/pinned.py",
        "len(self._entries) >= self._capacity:\n                return",
        "len(self._entries) >= self._capacity:\n                self._entries.popitem(last=False)",
        "test_cache.py::test_under_a_reshuffle_every_epoch_hit_rates_are_those_of_theory",
    ),
    Mutation(
        "evict the most recently used",
        "cache/lru.py",
        "self._entries.popitem(last=False)",
        "self._entries.popitem(last=True)",
        "test_cache.py::test_the_least_recently_used_entry_goes_first_and_a_get_is_a_use",
    ),
    Mutation(
        "publish a sample before its bytes",
        "cache/shared_store.py",
        "        self._data[start : start + len(content)] = content\n",
        "        self._words[id] = abs(self._words[id])\n        self._data[start : start + len(content)] = content\n"
        "        self._words[id] = -self._words[id]\n",
        "test_store_deaths.py::test_a_sample_whose_writer_was_killed_is_not_there_and_can_be_kept_at_once",
    ),
    Mutation(
        "take another's bytes for one's own after an eviction",
        "cache/shared_store.py",
        "if self._words[id] != word:  # it went",
        "if self._words[id] == 0:  # it went",
        "test_store_eviction.py::test_a_reader_never_takes_another_sample_for_its_own_that_left_and_came_back_to_its_place",
    ),
    Mutation(
        "reserve a dead writer's place again",
        "cache/shared_store.py",
        "            if word < 0 and self._forms[id] == form:",
        "            if False:",
        "test_store_deaths.py::test_a_dead_writers_place_is_written_again_and_counted_once",
    ),
    Mutation(
        "leave a dead writer's place to nobody",
        "cache/shared_store.py",
        "        if self._words[id] < 0:  # being",
        "        if False:  # being",
        "test_store_deaths.py::test_a_dead_writers_sample_is_wanted_however_little_it_is_worth",
    ),
    Mutation(
        "give back the wrong memory",
        "cache/extents.py",
        "table.data_start + start, size_bytes)",
        "table.data_start + start + PAGE_BYTES, size_bytes)",
        "test_store_eviction.py::test_a_store_that_evicts_is_never_a_byte_above_its_budget_and_gives_memory_back",
    ),
    Mutation(
        "count bytes instead of pages",
        "cache/extents.py",
        "        return whole_pages(size_bytes)\n",
        "        return size_bytes\n",
        "test_store_eviction.py::test_an_lru_evicts_what_an_ordered_dictionary_would_counted_in_whole_pages",
    ),
    Mutation(
        "a hit is no use",
        "cache/shared_store.py",
        "            if self._is_lru:\n                self._ranks[id] = time.monotonic()\n",
        "",
        "test_store_eviction.py::test_two_processes_that_take_turns_make_one_lru",
    ),
    Mutation(
        "forget a newcomer among those that may go",
        "cache/extents.py",
        "        if self._victims and request.rank < self._victims[-1][1]:",
        "        if False:",
        "test_store_theory.py::test_a_valued_store_is_within_a_sample_of_the_best_choice_and_stays_there",
    ),
    Mutation(
        "lock as the parent after a fork",
        "cache/record_locks.py",
        "            self._take(_opened_anew(inherited))",
        "            self._take(os.dup(inherited))",
        "test_shared_store.py::test_a_forked_childs_locks_exclude_its_parents",
    ),
    Mutation(
        "have every process load for itself",
        "cache/shared_store.py",
        "        with self._claims.hold(number), self._locks.hold(number):",
        "        with self._claims.hold(number):",
        "test_shared_store.py::test_a_sample_in_flight_in_one_process_is_waited_for_by_others_and_read_once",
    ),
    Mutation(
        "give the workers of a DataLoader a store each",
        "shared.py",
        "    return (Descriptor, (None,)) if descriptor.fd is None else",
        "    return (Descriptor, (None,)) if True else",
        "test_shared_store.py::test_multiprocessing_passes_the_same_memory[spawn]",
    ),
    Mutation(
        "take all that is free",
        "build_budget.py",
        "        return free // 2 // num_stores",
        "        return free // num_stores",
        "test_store_in_loaders.py::test_auto_takes_at_most_half_of_what_a_control_group_allows[pinned]",
    ),
    Mutation(
        "give every worker a store of its own",
        "shared.py",
        "        if arena is None or self.fd is None:",
        "        if True:",
        "test_store_in_loaders.py::test_a_whole_decoded_store_takes_its_bytes_once_for_all_processes[pinned]",
    ),
    Mutation(
        "let forked workers use the maker's cache",
        "dataset.py",
        "        load = self._own if os.getpid() == self._pid else self._shared",
        "        load = self._own",
        "test_store_in_torch_workers.py::test_worker_processes_open_each_file_once_together_and_none_in_the_next_epoch[fork-True-4]",
    ),
    Mutation(
        "forget when a sample came to its place",
        "cache/table.py",
        "    return 1 + start + (num_places % _GENERATIONS << _START_BITS)",
        "    return 1 + start",
        "test_store_eviction.py::test_a_reader_never_takes_another_sample_for_its_own_that_left_and_came_back_to_its_place",
    ),
    Mutation(
        "keep evicted samples' memory",
        "cache/extents.py",
        "                _punch_hole(self._file.fd, self._table.data_start + start, size_bytes)\n",
        "                pass\n",
        "test_store_eviction.py::test_a_store_that_evicts_is_never_a_byte_above_its_budget_and_gives_memory_back",
    ),
    Mutation(
        "leave what a killed process had evicted",
        "cache/shared_store.py",
        "                self._extents.mend()\n",
        "                pass\n",
        "test_store_deaths.py::test_the_next_to_come_gives_back_the_memory_that_a_killed_process_had_evicted",
    ),
    Mutation(
        "open again what was read for the estimate",
        "build_loading.py",
        "            begin=lambda made: making.begin(made, plan),\n",
        "",
        "test_store_in_loaders.py::test_four_processes_open_each_file_once_and_never_again_with_the_next_epoch_in_flight[pinned]",
    ),
    Mutation(
        "let a DataLoader's workers have the maker's own cache",
        "dataset.py",
        '"_own": self._shared, "_pid": None',
        '"_shared": self._own, "_pid": None',
        "test_store_in_torch_workers.py::test_worker_processes_open_each_file_once_together_and_none_in_the_next_epoch[spawn-True-2]",
    ),
    Mutation(
        "evict what is worth more",
        "cache/shared_store.py",
        "Request(id, size_of(form), rank)",
        'Request(id, size_of(form), float("inf"))',
        "test_store_theory.py::test_a_valued_store_is_within_a_sample_of_the_best_choice_and_stays_there",
    ),
    Mutation(
        "promise the same memory to two stores",
        "build_budget.py",
        "    return max(0, available_bytes() - sum(waiting))",
        "    return available_bytes()",
        "test_build.py::test_stores_of_one_program_do_not_count_on_the_same_memory",
    ),
    Mutation(
        "name packs without their place",
        "build_pack.py",
        "repr((fingerprint, ends))",
        "repr((fingerprint,))",
        "test_build.py::test_sets_whose_files_differ_in_nothing_but_their_place_have_packs_of_their_own",
    ),
    Mutation(
        "give up a file for pixels that do not fit",
        "cache/extents.py",
        "        if header[Field.kept_bytes] - kept_bytes + self.footprint(size_bytes) > table.settings.max_bytes:\n"
        "            return False\n",
        "",
        "test_store_theory.py::test_a_file_whose_pixels_do_not_fit_stays_a_file",
    ),
    Mutation(
        "build a pack in place",
        "cache/pack_build.py",
        'return path.with_suffix(".tmp")',
        "return path",
        "test_pack_build.py::test_a_build_killed_in_the_middle_is_never_taken_for_a_whole_one",
    ),
    Mutation(
        "open a pack of other data",
        "cache/pack.py",
        "if key is not None and key != self.key:",
        "if False:",
        "test_pack_build.py::test_pixels_of_another_decoder_are_not_used",
    ),
    Mutation(
        "use a packed sample unchecked",
        "cache/packed.py",
        "fresh = self._pack.holds(id, self._where(id), self._stamp(id))",
        "fresh = True",
        "test_pack.py::test_a_changed_file_comes_from_the_source_and_is_told_once",
    ),
    Mutation(
        "take over other pixels",
        "cache/pack_build.py",
        " and pack.key.pixels == pixels",
        "",
        "test_pack_build.py::test_another_max_side_is_another_pack_and_takes_nothing_over",
    ),
    Mutation(
        "believe any mark",
        "cache/pack.py",
        "return self.marker.read_bytes() == self._build",
        "return bool(self.marker.read_bytes())",
        "test_pack.py::test_a_mark_that_was_meant_for_an_earlier_pack_does_not_count",
    ),
    Mutation(
        "build again what another has built",
        "cache/pack_build.py",
        "        if pack is not None and not pack.is_stale():\n            return pack\n        try:",
        "        try:",
        "test_pack_build.py::test_of_two_processes_one_builds_and_the_other_waits_and_opens_it",
    ),
    Mutation(
        "stamp a tar's samples without their place",
        "sources/tar.py",
        "self._shards.encoded(shard), *place)",
        "self._shards.encoded(shard))",
        "test_sources.py::test_a_tar_samples_stamp_changes_with_its_archive_and_with_its_place_there",
    ),
    Mutation(
        "hand a rank's file to whoever inherits its place",
        "cache/host.py",
        "if self._served.setdefault(asker, peer.pid) == peer.pid:",
        "if self._served.setdefault(asker, peer.pid):",
        "test_host.py::test_a_program_that_inherits_a_ranks_place_does_not_get_its_file[1]",
    ),
    Mutation(
        "keep local rank 0's address in a forked child",
        "cache/host.py",
        "    os.register_at_fork(after_in_child=_leave_it_to_the_parent)",
        "    pass",
        "test_host.py::test_a_forked_child_that_outlives_local_rank_0_does_not_keep_its_place",
    ),
    Mutation(
        "believe a rounding near a half",
        "transforms/geometry.py",
        "_SURE_ROUNDING = 0.5 - 1e-6",
        "_SURE_ROUNDING = 1.0",
        "test_tiny.py::test_a_crop_whose_side_is_a_half_is_rounded_alike_among_many",
    ),
    Mutation(
        "take a crop that is larger than its image",
        "transforms/geometry.py",
        "(crop > 0) & (crop <= sides)",
        "(crop > 0)",
        "test_tiny.py::test_crops_of_many_images_are_those_of_each",
    ),
    Mutation(
        "make images above max_side among many",
        "transforms/sample.py",
        "min(_TINY_SIDE, options.max_side or _TINY_SIDE)",
        "_TINY_SIDE",
        "test_tiny.py::test_images_above_the_limit_or_max_side_are_made_alone",
    ),
    Mutation(
        "keep memory that a load has lent",
        "loader/sample.py",
        "sample.copy() if isinstance(sample, np.ndarray) else sample",
        "sample",
        "test_tiny.py::test_tiny_images_from_a_store_that_lends_its_memory_keep_their_bytes",
    ),
    Mutation(
        "make tiny images one by one",
        "loader/sample.py",
        "if self._together is not None and len(samples) > 1:",
        "if False:",
        "test_tiny.py::test_tiny_images_are_made_together_in_every_task_and_counted_one_by_one",
    ),
    Mutation(
        "drop the tiny images before a failure",
        "loader/sample.py",
        "                if together:\n                    yield together  # should",
        "                if False:\n                    yield together  # should",
        "test_tiny.py::test_a_failure_is_that_of_the_first_row_that_fails",
    ),
    Mutation(
        "make many rows that nobody wants",
        "loader/sample.py",
        "                if not begin(row, len(samples)):\n                    return",
        "                begin(row, len(samples))",
        "test_tiny.py::test_a_batch_that_nobody_wants_any_more_is_not_made",
    ),
    Mutation(
        "hold one row of many in hand",
        "loader/hands.py",
        "row << _COUNT_BITS | count",
        "row << _COUNT_BITS | 1",
        "test_tiny.py::test_all_rows_that_were_made_together_are_in_hand_and_no_other",
    ),
    Mutation(
        "forget the suspects among many rows",
        "loader/dispatch.py",
        "len(others) + len(rows) - 1",
        "len(others)",
        "test_tiny.py::test_a_worker_killed_among_many_rows_changes_nothing_and_blames_nobody",
    ),
    Mutation(
        "ignore what page cache a group could give up",
        "machine.py",
        'stat.get("total_inactive_file", stat.get("inactive_file", 0))',
        "0",
        "test_machine.py::test_memory_is_what_the_tightest_parent_leaves_its_inactive_page_cache_included",
    ),
    Mutation(
        "store the permutation's walk only once",
        "sampler.py",
        "            outside = outside[walked >= self.num_samples]\n",
        "            outside = outside[:0]\n",
        "test_sampler.py::test_a_number_walks_as_often_as_it_takes_to_be_inside",
    ),
    Mutation(
        "draw the same for neighbouring occurrences",
        "draws.py",
        "ids + (occurrence << _ID_BITS)",
        "ids",
        "test_draws.py::test_no_two_seeds_epochs_ids_or_occurrences_share_a_draw",
    ),
    Mutation(
        "accept a truncated JPEG",
        "decode/jpeg.py",
        "            buffer=buffer,\n            strict=True,",
        "            buffer=buffer,\n            strict=False,",
        "test_decode.py::test_a_truncated_image_is_an_error_and_never_half_grey",
    ),
    Mutation(
        "decode with the fast DCT",
        "decode/jpeg.py",
        "fastdct=False,",
        "fastdct=True,",
        "test_decode.py::test_plain_jpegs_are_bit_identical_to_pillow",
    ),
    Mutation(
        "sample without a low-pass",
        "transforms/resize.py",
        "    if taps_y == taps_x == 1:\n",
        "    if True:\n",
        "test_resize.py::test_fast_stays_within_its_bound_of_antialiased",
    ),
    Mutation(
        "resize evaluation by the fast way",
        "config/transforms.py",
        "decode=Decode.full, resize=Resize.exact, crops",
        "decode=Decode.full, resize=Resize.fast, crops",
        "test_build.py::test_validation_is_in_order_complete_and_the_same_every_epoch",
    ),
    Mutation(
        "flip every image",
        "transforms/sample.py",
        "draws[:, self._flip_column] < self._options.flip",
        "draws[:, self._flip_column] >= 0",
        "test_transforms.py::test_the_flip_mirrors_the_row_when_its_draw_is_below_the_probability",
    ),
    Mutation(
        "give every image of a batch the first one's colour",
        "transforms/device.py",
        "jitter.matrices(draws), images)",
        "jitter.matrices(draws[:1].repeat(len(draws), axis=0)), images)",
        "test_transforms.py::test_workers_and_devices_agree",
    ),
    Mutation(
        "weigh an uneven last batch like a full one",
        "training/evaluate.py",
        "num_samples += len(labels)",
        "num_samples += 4",
        "test_training.py::test_evaluation_counts_each_sample_once_with_short_and_empty_batches",
    ),
    Mutation(
        "write a checkpoint in place",
        "training/replacing.py",
        "aside = path.with_name(_aside(path.name, os.getpid()))",
        "aside = path",
        "test_training.py::test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_and_no_rubbish",
    ),
    Mutation(
        "begin the epoch again in the middle of which a run was stopped",
        "training/state.py",
        'pipeline.load_state_dict(state["loader"])',
        "pass",
        "test_resume.py::test_a_run_stopped_by_a_signal_at_any_step_goes_on_to_the_same_end[2]",
    ),
    Mutation(
        "forget the momentum of a run that is continued",
        "training/state.py",
        'learner.optimizer.load_state_dict(state.pop("optimizer"))',
        'state.pop("optimizer")',
        "test_resume.py::test_a_run_stopped_by_a_signal_at_any_step_goes_on_to_the_same_end[2]",
    ),
    Mutation(
        "forget the losses of the epoch in which a run was stopped",
        "training/fit.py",
        'Totals(**earlier["unfinished"])',
        'Totals(lr=earlier["unfinished"]["lr"], num_batches=earlier["unfinished"]["num_batches"])',
        "test_resume.py::test_a_run_stopped_by_a_signal_at_any_step_goes_on_to_the_same_end[2]",
    ),
    Mutation(
        "forget torch's generator",
        "training/state.py",
        'torch.set_rng_state(rng["cpu"])',
        "pass",
        "test_resume.py::test_torchs_generator_goes_on_from_where_it_was",
    ),
    Mutation(
        "save nothing when a signal comes in evaluation",
        "training/fit.py",
        "            self._save(LAST, pending)\n",
        "",
        "test_resume.py::test_a_signal_in_evaluation_is_evaluated_again_and_no_batch_is_trained_twice",
    ),
    Mutation(
        "save the last checkpoint before the best one",
        "training/fit.py",
        "            if best_top1 is None or evaluation.top1 > best_top1:\n",
        "            self._save(LAST, state)\n            if best_top1 is None or evaluation.top1 > best_top1:\n",
        "test_resume.py::test_a_run_killed_between_its_two_checkpoints_saves_the_best_one_again",
    ),
    Mutation(
        "swallow a signal that came too late to stop the run",
        "training/stopping.py",
        "signal.raise_signal(self._asked)",
        "pass",
        "test_resume.py::test_a_signal_while_an_epoch_is_saved_stops_after_it_or_finds_the_run_complete[last epoch]",
    ),
    Mutation(
        "continue under another configuration",
        "training/resume.py",
        "if not differences:",
        "if True:",
        "test_resume.py::test_a_changed_configuration_is_refused_with_a_line_a_key_before_anything_is_written",
    ),
    Mutation(
        "let evaluation share files with training",
        "sources/synthetic.py",
        'return held_out if split == "val" else ~held_out',
        "return held_out if split == 'val' else held_out | ~held_out",
        "test_synthetic.py::test_the_splits_are_disjoint_balanced_and_together_everything",
    ),
    Mutation(
        "accept a key that no schema has",
        "config/compose.py",
        "        if name not in names:",
        "        if False:",
        "test_config.py::test_a_wrong_override_is_one_line_with_key_value_and_nearest_choice",
    ),
    Mutation(
        "blame a sample for one death alone",
        "loader/deaths.py",
        "DEATHS_ALONE = 3",
        "DEATHS_ALONE = 1",
        "test_deaths.py::test_a_sample_is_blamed_at_its_third_death_alone_and_not_before",
    ),
    Mutation(
        "blame nobody",
        "loader/deaths.py",
        "if self._deaths_alone[suspect] < DEATHS_ALONE:",
        "if True:",
        "test_deaths.py::test_a_sample_is_blamed_at_its_third_death_alone_and_not_before",
    ),
    Mutation(
        "charge crashes at once",
        "loader/deaths.py",
        "counted=from_outside or not suspects or self.max_restarts == 0",
        "counted=True",
        "test_deaths.py::test_samples_that_crash_their_workers_never_use_up_the_restarts",
    ),
    Mutation(
        "forget the rest of a dead worker's task",
        "loader/dispatch.py",
        "others = [piece for piece in pieces if piece.start < piece.stop]",
        "others: list[Task] = []",
        "test_survival.py::test_a_crash_that_does_not_happen_again_blames_nobody_and_changes_nothing[1]",
    ),
    Mutation(
        "forget a dead worker's other tasks",
        "loader/dispatch.py",
        "                queue.appendleft((ring_file, task))\n",
        "                job.finish_task()\n",
        "test_dispatch.py::test_work_that_a_dead_worker_had_not_begun_waits_in_front_of_all_other",
    ),
    Mutation(
        "give a suspect to a worker that is busy",
        "loader/dispatch.py",
        "if worker.is_ready and not worker.outstanding]",
        "if worker.is_ready]",
        "test_dispatch.py::test_a_suspect_is_given_to_a_worker_that_has_nothing_else_and_gets_nothing_else",
    ),
    Mutation(
        "give others to a worker that makes a suspect",
        "loader/dispatch.py",
        "worker.is_ready and not worker.is_alone and len",
        "worker.is_ready and len",
        "test_dispatch.py::test_a_suspect_is_given_to_a_worker_that_has_nothing_else_and_gets_nothing_else",
    ),
    Mutation(
        "acquit suspects that nobody has made",
        "loader/dispatch.py",
        "task.job.ids[task.start : task.start + message.num_made]",
        "task.job.ids[task.start : task.stop]",
        "test_dispatch.py::test_a_suspect_that_was_abandoned_is_not_acquitted_by_rows_that_nobody_made",
    ),
    Mutation(
        "lose the notes of a worker's error",
        "loader/dispatch.py",
        "    failure.error.__notes__ = failure.notes\n",
        "",
        "test_processes.py::test_the_cause_of_an_error_is_told_beside_it",
    ),
    Mutation(
        "tell an error without its cause",
        "pickling.py",
        "    told = traceback",
        "    error.__cause__ = error.__context__ = None\n    told = traceback",
        "test_processes.py::test_the_cause_of_an_error_is_told_beside_it",
    ),
    Mutation(
        "make work that was abandoned",
        "loader/worker.py",
        "if hands.skips(work.ticket):",
        "if False:",
        "test_processes.py::test_work_that_was_abandoned_is_not_made",
    ),
    Mutation(
        "do not wait for the end of a worker that was killed",
        "loader/worker_process.py",
        "os.waitpid(self.pid, 0)",
        "os.waitpid(self.pid, os.WNOHANG)",
        "test_processes.py::test_a_worker_is_reaped_only_when_it_has_ended",
    ),
    Mutation(
        "give workers as many threads for sums as there are cores",
        "loader/worker_process.py",
        "os.environ | _ONE_THREAD",
        "dict(os.environ)",
        "test_processes.py::test_a_worker_is_a_lean_interpreter_on_the_same_path_with_one_thread_for_sums",
    ),
    Mutation(
        "start a replaced worker where the program is now",
        "loader/worker_process.py",
        "cwd=launch.directory",
        "cwd=None",
        "test_survival.py::test_a_replaced_worker_finds_relative_paths_where_the_loader_was_made",
    ),
    Mutation(
        "let SIGTERM end workers",
        "loader/worker_process.py",
        """    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"\n""",
        "",
        "test_survival.py::test_sigterm_ends_no_worker",
    ),
    Mutation(
        "leave what a transform started",
        "loader/worker_process.py",
        "os.killpg(self.pid, signal.SIGKILL)",
        "pass",
        "test_parents_end.py::test_what_a_transform_started_ends_with_its_worker[closed]",
    ),
    Mutation(
        "let workers write to memory that all of them share",
        "shared.py",
        "writable=True, private=True) for fd",
        "writable=True) for fd",
        "test_shared.py::test_what_another_process_writes_to_its_arrays_is_its_own",
    ),
    Mutation(
        "make workers' own arrays read-only",
        "shared.py",
        "writable=True, private=True) for fd",
        "writable=False) for fd",
        "test_own_transforms.py::test_a_transform_may_write_to_an_array_of_its_own_in_worker_processes",
    ),
    Mutation(
        "compare slots and shared memory with what is free, each alone",
        "build.py",
        "reserved_bytes=slots_bytes)",
        "reserved_bytes=0)",
        "test_processes.py::test_slots_and_what_workers_share_must_fit_together",
    ),
    Mutation(
        "hash every path for every state",
        "build_batches.py",
        "fingerprint=cache(partial(order_fingerprint, self.source, self.sampler, transforms, self.function))",
        "fingerprint=partial(order_fingerprint, self.source, self.sampler, transforms, self.function)",
        "test_loader_state.py::test_what_a_state_belongs_to_is_found_out_once",
    ),
    Mutation(
        "try the user's own transform out",
        "build_transform.py",
        "tried = pickle.loads(pickle.dumps(function)) if backend is Backend.processes else function",
        "tried = function",
        "test_own_transforms.py::"
        "test_a_transform_that_opens_a_lock_at_its_first_call_can_be_sent_and_begins_there_anew",
    ),
    Mutation(
        "seed nothing in worker processes",
        "build_transform.py",
        "seeding = Seeding.own if threads_per_worker == 1 else Seeding.none",
        "seeding = Seeding.none",
        "test_own_transforms.py::test_a_worker_of_one_thread_seeds_what_its_transform_draws_from",
    ),
    Mutation(
        "count the time in which nobody could look as a stall",
        "loader/watch.py",
        "min(now_s - self._looked_s, LONGEST_S)",
        "now_s - self._looked_s",
        "test_watch.py::test_an_interval_in_which_nobody_could_look_counts_for_no_more_than_the_longest",
    ),
    Mutation(
        "let a loader go while it is iterated",
        "loader/loader.py",
        "        self._loader = loader\n",
        "        self._loader = weakref.proxy(loader)\n",
        "test_survival.py::test_a_loader_that_only_its_loop_knows_replaces_its_workers[None]",
    ),
    Mutation(
        "forget that Ctrl-C broke planning off",
        "loader/loader.py",
        "        except BaseException:  # Ctrl-C comes between any two of these lines\n"
        "            self._interrupted = True\n",
        "        except BaseException:\n",
        "test_interrupts.py::test_ctrl_c_while_an_epoch_begins_takes_no_slot_away_however_often[threads]",
    ),
    Mutation(
        "forget that Ctrl-C broke handing over off",
        "loader/loader.py",
        "            loader._interrupted = True\n",
        "",
        "test_interrupts.py::test_an_iterator_that_is_asked_again_gives_every_batch_once[threads]",
    ),
    Mutation(
        "count a batch that Ctrl-C kept from the loop",
        "loader/loader.py",
        "            loader._handed = handed\n",
        "",
        "test_interrupts.py::test_the_state_counts_what_the_loop_was_given_before_ctrl_c[serial]",
    ),
    Mutation(
        "charge what lies ready to the pass",
        "bench/trial.py",
        "            settle(self._feed, self._take, self._contender.num_ready)\n            parts.append(",
        "            parts.append(",
        "test_trial.py::test_warm_up_and_what_lies_ready_are_taken_before_the_clock_starts[1-6]",
    ),
    Mutation(
        "forget the CPU time of children that have ended",
        "bench/memory.py",
        "            return ended_s + living_s",
        "            return living_s",
        "test_bench_costs.py::test_the_cpu_seconds_of_a_child_count_while_it_lives_and_after_it_has_ended",
    ),
    Mutation(
        "count a cache's hits from the beginning",
        "bench/counts.py",
        "before, first_step = self._now(), feed.step",
        "before, first_step = dict.fromkeys(self._now(), 0.0), feed.step",
        "test_trial.py::test_the_automatic_warm_up_fills_a_cache[0]",
    ),
    Mutation(
        "keep mapped pages of dropped files",
        "bench/page_cache.py",
        "            _let_go(mapped[file])\n",
        "",
        "test_cold_files.py::test_a_pack_is_dropped_although_this_process_maps_it",
    ),
    Mutation(
        "mix rounds of two configurations",
        "bench/result.py",
        '("contender", "config", "dataset", "host")',
        '("contender", "dataset", "host")',
        "test_result.py::test_rounds_of_different_trials_are_not_made_one[config]",
    ),
    Mutation(
        "stop as soon as an interval is narrow",
        "bench/noise.py",
        " and _half_width_of_sizes(ratios) <= narrow",
        "",
        "test_noise.py::test_that_all_rounds_agree_by_chance_is_no_reason_to_stop",
    ),
    Mutation(
        "measure the trials in one order",
        "bench/noise.py",
        'return [int(trial) for trial in np.argsort(drawn[:, 0], kind="stable")]',
        "return list(range(num_trials))",
        "test_noise.py::test_every_order_comes_as_often_as_another",
    ),
    Mutation(
        "call equal what cannot be told",
        "bench/noise.py",
        "return Verdict.same if is_narrow(interval, tell_pct) else Verdict.unknown",
        "return Verdict.same",
        "test_noise.py::test_a_verdict_is_same_only_where_the_difference_that_matters_would_have_been_seen"
        "[0.95-1.06-cannot tell]",
    ),
    Mutation(
        "serve a peer from files of before a change",
        "bench/peers/prepared.py",
        " and made_from.read_text() == stamps:",
        ":",
        "test_peers.py::test_a_file_is_prepared_once_and_again_after_a_change",
    ),
    Mutation(
        "run a peer where it was never seen to work",
        "bench/peers/environments.py",
        "if (environment / READY).exists() and python_in(environment).exists():",
        "if python_in(environment).exists():",
        "test_peers.py::test_a_loader_runs_where_it_was_seen_to_work",
    ),
    Mutation(
        "leave what a killed trial started",
        "bench/trial_process.py",
        "            member.kill()\n",
        "            continue\n",
        "test_rounds.py::test_a_process_that_hangs_is_killed_with_all_it_started",
    ),
    Mutation(
        "go on after a trial has failed with it",
        "bench/rounds.py",
        'return self.result.get("status") in ("failed", "skipped")',
        "return False",
        "test_rounds.py::test_a_trial_that_failed_has_no_further_rounds",
    ),
    Mutation(
        "resume a sweep of another configuration",
        "bench/sweep_file.py",
        "            if then.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)",
        "            if then.get(key) is None and not key.startswith(MAY_CHANGE)",
        "test_sweep.py::test_a_resumed_sweep_says_which_keys_of_its_base_differ",
    ),
    Mutation(
        "pair rounds of two sittings",
        "bench/compare.py",
        '(trial.sweep.directory, repeat["sitting"], repeat["round"])',
        '(trial.sweep.directory, repeat["round"])',
        "test_report.py::test_rounds_that_were_not_interleaved_give_a_ratio_without_an_interval",
    ),
    Mutation(
        "drop the columns that do not fit",
        "bench/table.py",
        "rest = [column for column in rest if column not in shown]",
        "rest = []",
        "test_report.py::test_columns_that_do_not_fit_move_to_a_second_table",
    ),
    Mutation(
        "compare with a stand-in as if it were the baseline",
        "bench/compare.py",
        "return self.baseline is not None and self.baseline is self.meant",
        "return self.baseline is not None",
        "test_report.py::test_a_baseline_without_a_result_is_stood_in_for_and_the_report_says_so",
    ),
    Mutation(
        "give every rank's mean loss the same weight",
        "training/learner.py",
        "return loss * (num_mine * self.world.size / num_samples)",
        "return loss",
        "test_dist.py::test_ranks_that_share_a_batch_take_the_step_of_one_process_that_has_all_of_it",
    ),
    Mutation(
        "report what one rank has scored",
        "training/evaluate.py",
        "world.sum(mine).tolist()",
        "mine.tolist()",
        "test_dist.py::test_ranks_that_share_a_batch_take_the_step_of_one_process_that_has_all_of_it",
    ),
    Mutation(
        "evaluate by each rank's own running statistics",
        "training/evaluate.py",
        "    world.share_buffers(model)\n",
        "",
        "test_dist.py::test_ranks_that_share_a_batch_take_the_step_of_one_process_that_has_all_of_it",
    ),
    Mutation(
        "give every part of a batch the same weight",
        "training/learner.py",
        "weighed = self._weighed(loss, len(some), num_samples)",
        "weighed = self._weighed(loss, num_samples // self.num_parts, num_samples)",
        "test_learner.py::test_parts_add_up_to_the_step_of_the_whole_batch",
    ),
    Mutation(
        "mix by the process's generator",
        "training/mixing.py",
        'torch.default_generator.manual_seed(key("mix", seed=self._seed, step=step, rank=rank))',
        "pass",
        "test_learner.py::test_what_is_mixed_is_a_function_of_seed_step_and_rank_and_moves_no_generator",
    ),
    Mutation(
        "take the head of given weights only where it has other classes",
        "training/weights.py",
        "return has_head and any(own[name].shape != weights[name].shape for name in head)",
        "return has_head",
        "test_weights.py::test_a_run_begins_with_the_weights_it_is_given",
    ),
    Mutation(
        "drop kept checkpoints when a run that keeps none goes on",
        "training/fit.py",
        "        if self.cfg.run.keep_top == 0:\n            return\n",
        "",
        "test_weights.py::test_checkpoints_that_were_kept_stay_when_the_run_goes_on_without_keeping_any",
    ),
    Mutation(
        "blame a rank that lost another",
        "dist/launch.py",
        "if not isinstance(end.error, LostRankError | KeyboardInterrupt)]",
        "if not isinstance(end.error, KeyboardInterrupt)]",
        "test_dist.py::test_the_first_cause_is_what_went_wrong_by_itself",
    ),
    Mutation(
        "believe the name that ranks of an earlier start were given",
        "dist/world.py",
        "own = uuid4().hex",
        "own = str(rank)",
        "test_dist.py::test_ranks_that_start_again_meet_each_other_and_not_what_is_left_of_those_before",
    ),
    Mutation(
        "have the doctor end with 0 whatever it finds",
        "doctor/__main__.py",
        "    return int(any(finding.level is Level.error for finding in findings))",
        "    return 0",
        "test_doctor.py::test_damaged_and_missing_images_are_named_and_the_run_would_end",
    ),
    Mutation(
        "let a check that raises end the doctor",
        "doctor/finding.py",
        "    except Exception as raised:\n        yield error(what, in_words(raised))",
        "    except ZeroDivisionError as raised:\n        yield error(what, in_words(raised))",
        "test_doctor.py::test_a_check_that_raises_is_an_error_and_what_it_found_before_stays",
    ),
    Mutation(
        "have the doctor generate the data",
        "doctor/data.py",
        "        if not is_generated(str(data.root), num_images=data.num_images, **seed):",
        "        if is_generated(str(data.root), num_images=data.num_images, **seed):",
        "test_doctor.py::test_data_that_the_first_run_makes_is_neither_made_nor_an_error",
    ),
    Mutation(
        "predict memory for evaluation that training has taken",
        "doctor/memory.py",
        "            promises.enter_context(promised(PrivateStore(settings), store_plan.likely_bytes))\n",
        "",
        "test_doctor.py::test_what_training_keeps_is_not_there_for_what_evaluation_keeps",
    ),
    Mutation(
        "compare the disk with the warm rate",
        "doctor/samples.py",
        "    if first.mb_per_s >= wanted:",
        "    if warm.mb_per_s >= wanted:",
        "test_doctor.py::test_a_disk_that_decoding_would_wait_for_is_a_warning_with_the_keys_that_keep_samples",
    ),
    Mutation(
        "go on calling a logger that has failed",
        "training/loggers/loggers.py",
        "                del self._started[name]\n",
        "",
        "test_loggers.py::test_a_logger_that_fails_is_reported_once_and_dropped_and_the_run_is_the_same",
    ),
    Mutation(
        "let a logger that fails end the run",
        "training/loggers/loggers.py",
        "if isinstance(logger, CsvLogger):",
        "if True:",
        "test_loggers.py::test_a_logger_that_fails_is_reported_once_and_dropped_and_the_run_is_the_same",
    ),
    Mutation(
        "go on without a metrics.csv that cannot be written",
        "training/loggers/loggers.py",
        "if isinstance(logger, CsvLogger):",
        "if False:",
        "test_loggers.py::test_a_metrics_csv_that_cannot_be_written_ends_the_run",
    ),
    Mutation(
        "close no logger of a run that fails",
        "training/metrics.py",
        "            self.loggers.close(self.summary)\n",
        "            if error is None:\n                self.loggers.close(self.summary)\n",
        "test_loggers.py::test_a_logger_that_cannot_start_ends_the_run_before_the_first_step_and_the_others_hear_of_it",
    ),
    Mutation(
        "drop the loggers' step that the checkpoint stands at, and tell it no more",
        "training/fit.py",
        "if self.learner.num_steps % self.cfg.logger.every_steps == 0:",
        "if False:",
        "test_loggers.py::test_a_logger_that_drops_what_comes_again_ends_as_if_nothing_had_happened[in an epoch]",
    ),
    Mutation(
        "keep the row of an epoch that comes again",
        "training/state.py",
        'return step + 1 if state["unfinished"] is None else step',
        "return step + 1",
        "test_loggers.py::test_a_logger_that_drops_what_comes_again_ends_as_if_nothing_had_happened[in an epoch]",
    ),
    Mutation(
        "give every rank the loggers",
        "training/run.py",
        "loggers = Loggers(choose_loggers(cfg.logger)) if world.is_first else Loggers()",
        "loggers = Loggers(choose_loggers(cfg.logger))",
        "test_loggers.py::test_only_the_first_rank_tells_a_logger",
    ),
    Mutation(
        "keep a metrics.csv of a run that saved nothing",
        "training/loggers/csv_file.py",
        "if self._rows or self._path.exists():",
        "if self._rows:",
        "test_loggers.py::test_a_run_that_begins_anew_keeps_no_row_of_one_that_saved_nothing",
    ),
    Mutation(
        "find out that TensorBoard is missing when the first curve is drawn",
        "training/loggers/tensorboard.py",
        'if find_spec("tensorboard") is None:',
        "if False:",
        "test_loggers.py::test_tensorboard_that_is_not_installed_is_one_line_before_anything_is_trained",
    ),
    Mutation(
        "take a logger without its methods",
        "training/loggers/choose.py",
        "    if missing:\n",
        "    if False:\n",
        "test_loggers.py::test_a_logger_that_cannot_be_had_is_one_line[no logger]",
    ),
    Mutation(
        "show normalised samples",
        "training/samples_sheet.py",
        "255 * (levels * std + mean)",
        "255 * levels",
        "test_samples_sheet.py::test_the_sheet_has_each_image_of_the_first_batches_as_the_model_gets_it",
    ),
    Mutation(
        "denormalise the batch that is trained on",
        "training/samples_sheet.py",
        "        pixels = denormalised(images[:room], self._transforms)\n",
        "        pixels = denormalised(images[:room], self._transforms)\n        images[:room].mul_(0.5)\n",
        "test_samples_sheet.py::test_a_run_with_the_sheet_ends_with_the_same_weights_to_the_bit",
    ),
    Mutation(
        "name the samples of a sheet in another order",
        "training/samples_sheet.py",
        "ids = batch.ids[:room].tolist()",
        "ids = batch.ids.flip(0)[:room].tolist()",
        "test_samples_sheet.py::test_the_sheet_says_class_and_id_under_each_image_and_what_was_done_to_all",
    ),
    Mutation(
        "make the sheet anew in every part of a run",
        "training/run.py",
        "if not cfg.report.samples or (earlier is not None and path.exists()):",
        "if not cfg.report.samples:",
        "test_samples_sheet.py::test_a_continued_run_keeps_its_sheet_and_makes_one_that_is_missing",
    ),
    Mutation(
        "draw names beyond their image",
        "training/contact_sheet.py",
        "    if font.getlength(line) <= width:\n",
        "    if True:\n",
        "test_samples_sheet.py::test_a_name_that_is_too_long_is_cut_and_stays_under_its_own_image",
    ),
    Mutation(
        "count a sample's stages and not what lies between",
        "loader/sample.py",
        "clock.add(BUSY, perf_counter() - began_s, row)",
        "clock.add(BUSY, 0.0, row)",
        "test_stall_report.py::test_a_stage_of_a_sample_in_worker_processes_is_counted_too",
    ),
    Mutation(
        "take the wait for workers for collating",
        "loader/loader.py",
        "took_s - waited_s - (clock",
        "took_s - (clock",
        "test_stall_report.py::test_waiting_for_workers_is_not_collating",
    ),
    Mutation(
        "leave the transfer uncounted",
        "prefetch.py",
        "clock.add(TRANSFER, time.perf_counter() - began, ",
        "clock.add(TRANSFER, 0.0, ",
        "test_stall_report.py::test_a_delay_is_found_at_its_stage[4]",
    ),
    Mutation(
        "let every worker do all the work",
        "stalls/bound.py",
        "stage: spent_s / lanes.num_threads for",
        "stage: spent_s for",
        "test_stall_report.py::test_the_slowest_lane_sets_the_pace_and_its_largest_stage_is_named",
    ),
    Mutation(
        "forget what was made before an epoch",
        "stalls/bound.py",
        " - max(0.0, costs.num_ahead - a_batch)",
        "",
        "test_stall_report.py::test_an_epoch_takes_its_first_batch_the_pace_of_the_slowest_lane_and_the_last_step",
    ),
    Mutation(
        "advise workers that have no core",
        "stalls/advice.py",
        "later_costs.cpu_s / capacity)",
        "0.0)",
        "test_stall_report.py::test_where_nothing_would_help_it_says_so",
    ),
    Mutation(
        "take saving a checkpoint for computing",
        "training/loop.py",
        "spent.lap(OVERHEAD)\n        if is_over:",
        "spent.end_step()\n        if is_over:",
        "test_training.py::test_waiting_computing_and_what_stands_beside_are_measured_apart_and_add_up",
    ),
    Mutation(
        "tune over what the user has set",
        "training/tuning/tune.py",
        '    if num_workers != "auto":\n',
        "    if num_workers == 0:\n",
        "test_tuning.py::test_what_is_set_is_left_as_it_is",
    ),
    Mutation(
        "tune as if a step took no core",
        "training/tuning/cell.py",
        "(self.sample_cpu_s + self.step_cpu_s[cell.num_threads])",
        "(self.sample_cpu_s)",
        "test_tuning.py::test_what_is_tried_first_is_what_the_costs_promise_most_with_the_least_it_takes",
    ),
    Mutation(
        "tune again when a run goes on",
        "training/run.py",
        "    if not is_new:\n",
        "    if False:\n",
        "test_tuning.py::test_a_tuned_run_is_the_run_with_the_overrides_it_names_and_goes_on_with_them",
    ),
    Mutation(
        "promise the core back that reading never took",
        "stalls/advice.py",
        "read_cpu_s = max(0.0, read_s - max(0.0, busy_s - making_cpu_s))",
        "read_cpu_s = read_s",
        "test_stall_report.py::test_the_override_that_promises_most_is_told",
    ),
    Mutation(
        "promise a model cores that its threads cannot use",
        "stalls/advice.py",
        "faster_s = max(least_s, ",
        "faster_s = max(0.0, ",
        "test_stall_report.py::test_the_override_that_promises_most_is_told",
    ),
    Mutation(
        "promise that more threads make Python faster",
        "stalls/advice.py",
        "    if not lanes.in_threads:\n        return costs\n",
        "    if True:\n        return costs\n",
        "test_stall_report.py::test_more_threads_are_not_promised_to_make_python_faster_and_more_processes_are",
    ),
    Mutation(
        "count the first batch's making twice",
        "stalls/bound.py",
        "a_batch * sum(_between_batches(costs).values())",
        "a_batch * pace_s[Lane.loop]",
        "test_stall_report.py::test_an_epoch_takes_its_first_batch_the_pace_of_the_slowest_lane_and_the_last_step",
    ),
    Mutation(
        "explain the first rank whoever waited",
        "training/stall_watch.py",
        "rank = waited_s.index(max(waited_s))",
        "rank = 0",
        "test_stall_report.py::test_of_several_ranks_the_one_that_waits_most_is_explained_and_the_others_wait_for_it",
    ),
    Mutation(
        "advise a cache for samples that are asked for once",
        "training/stall_watch.py",
        "return num_epochs >= 2 and ",
        "return ",
        "test_stall_report.py::test_a_cache_is_advised_where_it_would_hold_all_pixels_and_be_asked_again",
    ),
    Mutation(
        "advise a cache that would keep bytes",
        "build_loading.py",
        " and plan.likely_bytes < settings.max_bytes",
        "",
        "test_stall_report.py::test_a_cache_is_advised_where_it_would_hold_all_pixels_and_be_asked_again",
    ),
    Mutation(
        "explain no run that was interrupted",
        "training/run.py",
        "            _look_back(record, fit, part, may_read=False)",
        "            pass",
        "test_resume.py::test_a_signal_saves_a_checkpoint_and_prints_the_command_that_continues_it",
    ),
    Mutation(
        "count what was made ahead as trained",
        "training/stall_watch.py",
        "num_samples=spent.num_samples,",
        'num_samples=int(after["samples"] - before["samples"]),',
        "test_stall_report.py::test_a_part_that_ends_early_is_of_the_samples_the_loop_had_and_not_of_those_made_ahead",
    ),
    Mutation(
        "never ask the device how long steps were",
        "training/loop_clock.py",
        "            self.device.collect()",
        "            pass",
        "test_stall_report.py::test_steps_of_a_device_are_as_long_as_the_device_says",
    ),
    Mutation(
        "take an epoch's end for a batch",
        "prefetch.py",
        "self.ready.qsize() - self._is_over",
        "self.ready.qsize()",
        "test_prefetch.py::test_what_ends_an_epoch_is_no_batch_that_was_ready",
    ),
    Mutation(
        "keep the clock of every thread there was",
        "stats.py",
        "self._of_ended_thread() or StageClock()",
        "StageClock()",
        "test_prefetch.py::test_an_epoch_more_is_no_clock_more",
    ),
    Mutation(
        "take every n-th sample of classes that come in turns",
        "sources/subset.py",
        'np.argsort(labels, kind="stable") if labels.ndim == 1 else np.arange(num_samples)',
        "np.arange(num_samples)",
        "test_subset.py::test_a_class_keeps_its_share_however_the_source_orders_them[in turns]",
    ),
    Mutation(
        "read a part's samples by the whole's numbers",
        "sources/subset.py",
        "return self._source.read(self._id(id))",
        "return self._source.read(id)",
        "test_subset.py::test_a_part_of_every_source_has_the_samples_of_the_whole_and_is_the_same_after_a_pickle[files]",
    ),
    Mutation(
        "take parts of one source for the same samples",
        "sources/subset.py",
        "[self._source.fingerprint().encode(), self._ids.tobytes()]",
        "[self._source.fingerprint().encode()]",
        "test_subset.py::test_parts_of_other_samples_or_of_another_source_have_other_fingerprints",
    ),
    Mutation(
        "give a part the weights of other samples",
        "sources/subset.py",
        "None if weights is None else weights[ids]",
        "None if weights is None else weights[: len(ids)]",
        "test_subset.py::test_weights_go_with_their_samples",
    ),
    Mutation(
        "limit evaluation as training",
        "build_source.py",
        'data.max_samples if split == "train" else data.max_val_samples',
        "data.max_samples",
        "test_subset.py::test_each_split_has_its_own_limit",
    ),
    Mutation(
        "leave a part's archives open",
        "sources/subset.py",
        "            self._source.close()\n",
        "            pass\n",
        "test_subset.py::test_a_part_names_its_files_or_all_archives_and_closes_those",
    ),
    Mutation(
        "say of every debug run that it overfit",
        "training/debug.py",
        "return self.rows[-1].train_loss < OVERFIT_LOSS",
        "return True",
        "test_debug.py::test_overfit_says_no_where_the_labels_cannot_be_told_from_the_images",
    ),
    Mutation(
        "keep quiet about debug in the summary",
        "training/debug.py",
        "return super()._results() | told | (",
        "return super()._results() | (",
        "test_debug.py::test_fast_takes_five_steps_and_a_small_evaluation_and_leaves_all_that_a_run_leaves",
    ),
    Mutation(
        "begin with the first epoch again when images change their size",
        "build.py",
        '        self.load_state_dict(state | {"order": self.state_dict()["order"]})\n',
        "",
        "test_sizes.py::test_batches_after_a_change_are_those_of_a_pipeline_of_that_size[0-auto-none]",
    ),
    Mutation(
        "start workers of another size beside the old ones",
        "build.py",
        "        self._made.close()\n        self._made = ",
        "        self._made = ",
        "test_sizes.py::test_the_workers_end_before_others_begin",
    ),
    Mutation(
        "let a prefetcher's seconds begin anew with another size",
        "build.py",
        "if before is not None and after is not None:",
        "if False:",
        "test_sizes.py::test_the_seconds_of_a_prefetcher_go_on_after_a_change",
    ),
    Mutation(
        "train every epoch at the first one's size",
        "training/fit.py",
        "if self.cfg.schedule.sizes is not None and size",
        "if False and size",
        "test_sizes.py::test_each_epoch_trains_at_its_size_and_every_evaluation_is_at_the_transforms[0-none]",
    ),
    Mutation(
        "evaluate at the training images' size",
        "training/run.py",
        'build(part, split="val")',
        'build(sized, split="val")',
        "test_sizes.py::test_each_epoch_trains_at_its_size_and_every_evaluation_is_at_the_transforms[0-none]",
    ),
    Mutation(
        "go on at the first epoch's size",
        "training/run.py",
        'epoch = 1 if earlier is None else int(earlier["epoch"])',
        "epoch = 1",
        "test_sizes.py::test_a_run_cut_anywhere_goes_on_to_the_same_end[6]",
    ),
    Mutation(
        "go on from a border at the size that comes after it",
        "training/run.py",
        'epoch = 1 if earlier is None else int(earlier["epoch"])',
        'epoch = 1 if earlier is None else len(earlier["record"]["rows"]) + 1',
        "test_sizes.py::test_a_run_killed_after_an_epoch_goes_on_from_the_border_to_the_same_end[1]",
    ),
    Mutation(
        "make batches ahead that the next size throws away",
        "training/sizes.py",
        "return next(changes, cfg.schedule.epochs + 1) - 1",
        "return cfg.schedule.epochs",
        "test_sizes.py::test_sizes_by_epoch",
    ),
    Mutation(
        "find out in the middle of a run that memory lacks room for larger images",
        "training/run.py",
        "            train_pipeline.check_size(max(training_sizes(cfg)))\n",
        "            pass\n",
        "test_sizes.py::test_a_size_that_memory_has_no_room_for_is_refused_before_the_first_step",
    ),
    Mutation(
        "keep the size that was tuned at",
        "training/run.py",
        "return replace(tuned, transforms=cfg.transforms, schedule=cfg.schedule)",
        "return tuned",
        "test_sizes.py::test_tuning_changes_no_size",
    ),
    Mutation(
        "describe the contact sheet by evaluation's size",
        "training/run.py",
        "_sheet(sized, run_dir",
        "_sheet(cfg, run_dir",
        "test_sizes.py::test_the_contact_sheet_shows_images_of_the_first_size",
    ),
    Mutation(
        "check a last batch of one image at evaluation's size only",
        "training/checks.py",
        "smallest = training_sizes(cfg)[0]",
        "smallest = cfg.transforms.size",
        "test_sizes.py::test_sizes_must_fit_the_other_keys",
    ),
    Mutation(
        "predict the memory of the smallest size",
        "doctor/plan.py",
        "size=training_sizes(self.cfg)[-1]",
        "size=training_sizes(self.cfg)[0]",
        "test_sizes.py::test_the_doctor_plans_for_the_largest_size",
    ),
    Mutation(
        "start workers for a pipeline that was closed",
        "build.py",
        "if self._is_closed:",
        "if False:",
        "test_sizes.py::test_a_size_that_is_none_changes_nothing_and_a_closed_pipeline_starts_no_workers",
    ),
    Mutation(
        "let another loader read all of a data set of which a part was asked for",
        "bench/peers/task.py",
        '        ("data.max_samples", cfg.data.max_samples, None),',
        '        ("data.max_samples", None, None),',
        "test_peers.py::test_what_another_loader_cannot_do_is_refused_by_its_key[a part of the samples]",
    ),
    Mutation(
        "tell of a wrong list of lists what omegaconf says",
        "config/messages.py",
        "    if key in _LISTS_OF_LISTS:\n",
        "    if False:\n",
        "test_sizes.py::test_the_command_line_and_yaml_mean_the_same",
    ),
    Mutation(
        "take a transform's mistake for a bad sample",
        "loader/job.py",
        "not isinstance(error, BadImageError):",
        "not isinstance(error, ValueError):",
        "test_bad_samples.py::test_a_mistake_of_a_transform_is_no_bad_sample",
    ),
    Mutation(
        "leave the row of a bad sample in its batch",
        "loader/bad.py",
        "for bad_row in bad if bad_row.replaced_by is None]",
        "for bad_row in bad if bad_row.replaced_by == -1]",
        "test_bad_samples.py::test_skip_leaves_out_bad_samples_alone_and_every_batch_has_its_place",
    ),
    Mutation(
        "give a replaced sample the bad one's label",
        "loader/bad.py",
        "labels=labels[ids[kept]]",
        "labels=plan.labels[kept]",
        "test_bad_samples.py::test_replace_puts_another_in_its_place_with_its_own_label",
    ),
    Mutation(
        "replace a bad sample by the same one every epoch",
        "loader/bad.py",
        "seed=self.seed, epoch=epoch, id=id",
        "seed=self.seed, epoch=0, id=id",
        "test_bad_samples.py::test_replace_puts_another_in_its_place_with_its_own_label",
    ),
    Mutation(
        "move no row up into a bad one's place",
        "loader/bad.py",
        "        if place != row:",
        "        if place > row:",
        "test_bad_samples.py::test_the_good_samples_of_a_shorter_batch_are_what_they_are_without_bad_ones",
    ),
    Mutation(
        "forget the bad rows of worker processes",
        "loader/dispatch.py",
        "            task.job.add_bad(message.bad, first=task.start)\n",
        "",
        "test_bad_samples.py::test_skip_leaves_out_bad_samples_alone_and_every_batch_has_its_place",
    ),
    Mutation(
        "count bad rows from their task's first",
        "loader/job.py",
        "row=first + bad_row.row",
        "row=bad_row.row",
        "test_bad_samples.py::test_skip_leaves_out_bad_samples_alone_and_every_batch_has_its_place",
    ),
    Mutation(
        "pass over what a network disk may do tomorrow",
        "loader/read.py",
        "        errno.ENAMETOOLONG,\n",
        "        errno.ENAMETOOLONG,\n        errno.EIO,\n",
        "test_bad_samples.py::test_a_disk_that_fails_raises_under_every_policy",
    ),
    Mutation(
        "read a flaky disk once",
        "loader/read.py",
        "_TRY_AGAIN_AFTER_S = (0.1, 0.5)",
        "_TRY_AGAIN_AFTER_S = ()",
        "test_bad_samples.py::test_a_disk_that_answers_at_the_second_try_has_answered",
    ),
    Mutation(
        "write a bad sample down every epoch",
        "quarantine.py",
        "        if (split, path) in self._paths:",
        "        if False:",
        "test_bad_samples.py::test_a_bad_sample_goes_into_the_quarantine_once",
    ),
    Mutation(
        "allow any number of bad samples",
        "quarantine.py",
        "if len(self.causes) <= self._max_fraction * self._num_samples:",
        "if True:",
        "test_bad_samples.py::test_more_bad_samples_than_may_be_end_the_loop_and_are_named",
    ),
    Mutation(
        "end the build of a pack at a bad sample",
        "cache/pack_build.py",
        "            if contents.passes_over(error):",
        "            if False:",
        "test_bad_samples.py::test_skip_leaves_out_bad_samples_alone_and_every_batch_has_its_place[a pack]",
    ),
    Mutation(
        "keep one rank's bad samples from the others",
        "training/bad.py",
        "for causes in world.gather_values(dict(pipeline.bad.causes)):",
        "for causes in [pipeline.bad.causes]:",
        "test_bad_samples.py::test_ranks_with_unequal_shares_of_bad_samples_end_together_and_write_one_file",
    ),
    Mutation(
        "refuse to go on with skip",
        "training/resume.py",
        '    "data.on_error", "data.max_bad_fraction",',
        '    "data.max_bad_fraction",',
        "test_bad_samples.py::test_a_run_names_what_it_passed_over_and_one_that_raised_goes_on_with_skip",
    ),
    Mutation(
        "decode an image of any number of pixels",
        "decode/header.py",
        "if info.height * info.width > MAX_PIXELS:",
        "if False:",
        "test_decode.py::test_an_image_of_too_many_pixels_is_refused_by_its_header_whatever_would_decode_it",
    ),
    Mutation(
        "count no image that Pillow decoded",
        "decode/__init__.py",
        "clock.tally(PILLOW, by_pillow)",
        "pass",
        "test_api.py::test_stats_say_how_many_images_were_no_plain_jpegs",
    ),
    Mutation(
        "let a slow start bound every run",
        "stalls/bound.py",
        "    if firsts_s <= sum(others_s):\n",
        "    if False:\n",
        "test_stall_report.py::test_a_first_batch_that_took_a_while_is_not_what_bounds_a_run",
    ),
    Mutation(
        "promise to save what a slow start took",
        "stalls/bound.py",
        "    return sum(_phases_s(costs, lanes))",
        "    return sum(_phases_s(costs, lanes)[1:])",
        "test_stall_report.py::test_what_a_slow_start_took_no_override_is_promised_to_save",
    ),
    Mutation(
        "fail a run for its report",
        "training/stall_watch.py",
        "        except Exception:\n            _log.exception",
        "        except ZeroDivisionError:\n            _log.exception",
        "test_stall_report.py::test_no_run_fails_for_its_report",
    ),
    Mutation(
        "forget that evaluation has a store too",
        "build_loading.py",
        "if cache.max_gib is not None and",
        "if False and",
        "test_stall_report.py::test_a_cache_is_advised_where_evaluation_can_have_as_large_a_one",
    ),
    Mutation(
        "give an array sample's pixels in the pickle",
        "sources/arrays.py",
        'return {**self.__dict__, "_images": None}',
        "return {**self.__dict__}",
        "test_arrays.py::test_a_pickle_has_no_pixels_and_neither_has_what_workers_share",
    ),
    Mutation(
        "read the whole array at the start",
        "sources/arrays.py",
        'return np.asarray(np.lib.format.open_memmap(path, mode="r"))',
        "return np.load(path)",
        "test_arrays.py::test_a_sample_is_a_view_of_the_mapped_file_that_nobody_can_write_to",
    ),
    Mutation(
        "map an array that changed since it was opened",
        "sources/arrays.py",
        "if images.shape != self._shape or images.dtype != np.uint8:",
        "if False:",
        "test_arrays.py::test_a_file_that_changed_before_another_process_maps_it_is_an_oserror",
    ),
    Mutation(
        "keep the map of an array that was closed",
        "sources/arrays.py",
        '        """Lets the map go; calling it again does nothing."""\n        self._images = None',
        '        """Lets the map go; calling it again does nothing."""',
        "test_arrays.py::test_close_lets_the_map_go_when_no_sample_is_held_and_a_later_read_maps_again",
    ),
    Mutation(
        "give grey images the first of their columns three times",
        "sources/arrays.py",
        "np.repeat(image[:, :, None], 3, axis=2)",
        "np.repeat(image[:, :1, None], 3, axis=2)",
        "test_arrays.py::test_a_grey_image_has_three_equal_channels",
    ),
    Mutation(
        "number the classes of arrays by the training labels alone",
        "sources/arrays.py",
        "class_names = max(_class_names(numbers), _class_names(val_numbers), key=len)",
        "class_names = _class_names(numbers)",
        "test_arrays.py::test_classes_are_numbered_over_both_parts_and_decimal_labels_are_values",
    ),
    Mutation(
        "leave an array's stamp as it is when the file changes",
        "sources/arrays.py",
        "return stamp_file(self._path, id)",
        "return id",
        "test_sources.py::test_every_source_keeps_the_contract[arrays]",
    ),
    Mutation(
        "read array samples from the end for negative ids",
        "sources/arrays.py",
        "if not 0 <= id < len(self):",
        "if id >= len(self):",
        "test_sources.py::test_every_source_keeps_the_contract[arrays with their split]",
    ),
    Mutation(
        "call both splits of arrays alike",
        "sources/subset.py",
        "hash_order([self._source.fingerprint().encode(), self._ids.tobytes()], self.labels)",
        "self._source.fingerprint()",
        "test_sources.py::test_every_source_keeps_the_contract[grey arrays]",
    ),
    Mutation(
        "leave labels of sources writable",
        "sources/source.py",
        "    array.flags.writeable = False\n    return array",
        "    return array",
        "test_sources.py::test_every_source_keeps_the_contract[memory]",
    ),
    Mutation(
        "learn CIFAR-100's superclasses unasked",
        "sources/cifar.py",
        'kind = "coarse" if coarse else "fine"',
        'kind = "coarse"',
        "test_cifar.py::test_cifar100_has_its_100_classes_and_when_asked_its_20_superclasses",
    ),
    Mutation(
        "download CIFAR unasked",
        "sources/cifar.py",
        "    if missing and download:",
        "    if missing:",
        "test_cifar.py::test_missing_cifar100_names_the_two_keys_that_cure_it",
    ),
    Mutation(
        "take CIFAR files of any content",
        "sources/cifar.py",
        "if not isinstance(content, dict) or not keys <= content.keys():",
        "if not isinstance(content, dict):",
        "test_cifar.py::test_files_of_one_cifar_under_the_names_of_the_other_are_refused",
    ),
    Mutation(
        "let a failed download end in a traceback",
        "sources/cifar.py",
        "except (OSError, RuntimeError) as error:",
        "except OSError as error:",
        "test_cifar.py::test_an_archive_with_another_checksum_or_none_at_all_is_refused_and_not_unpacked",
    ),
    Mutation(
        "evaluate on all that a factory without splits gives",
        "sources/own.py",
        'if "split" in keywords:',
        "if True:",
        "test_own_sources.py::test_what_a_function_without_splits_gives_is_divided_by_names_below_root",
    ),
    Mutation(
        "divide a factory's samples by where they lie",
        "sources/own.py",
        'prefix = "" if root is None else',
        'prefix = "" if True else',
        "test_own_sources.py::test_what_a_function_without_splits_gives_is_divided_by_names_below_root",
    ),
    Mutation(
        "ignore data.root where the factory takes none",
        "sources/own.py",
        '    elif "root" not in taken:',
        "    elif False:",
        "test_own_sources.py::test_arguments_that_do_not_meet_the_function_are_refused",
    ),
    Mutation(
        "give a factory root=None",
        "sources/own.py",
        '        taken.pop("root", None)\n',
        "        pass\n",
        "test_own_sources.py::test_a_function_gets_those_of_the_keywords_that_it_takes",
    ),
    Mutation(
        "take what a factory gives as it is",
        "sources/own.py",
        "    _check_source(source, place)\n",
        "",
        "test_own_sources.py::test_what_is_no_source_is_refused_by_name_with_the_cure[list]",
    ),
    Mutation(
        "end the run at once when a factory's first sample cannot be read",
        "sources/own.py",
        "    except OSError:\n",
        "    except EOFError:\n",
        "test_own_sources.py::test_a_first_sample_that_cannot_be_read_is_left_to_on_error",
    ),
    Mutation(
        "say of every module that is not found that its directory is not known",
        "named.py",
        'if is_its_own else "install it"',
        'if True else "install it"',
        "test_own_sources.py::test_a_module_that_fails_or_lacks_a_package_says_so",
    ),
    Mutation(
        "let the doctor pass a source that cannot be sent",
        "doctor/data.py",
        '        check_picklable(source, "source", "use loader.backend=threads")',
        "        pass",
        "test_own_sources.py::test_the_doctor_says_what_cannot_be_sent_to_worker_processes",
    ),
    Mutation(
        "read a row group of Parquet once for each thread that asks",
        "sources/parquet.py",
        "            known = self._asked.get(key)\n",
        "            known = None\n",
        "test_parquet.py::test_threads_that_ask_for_one_row_group_have_it_read_once",
    ),
    Mutation(
        "keep every row group that was read",
        "sources/parquet.py",
        "                if num_bytes <= _KEPT_BYTES:\n",
        "                if True:\n",
        "test_parquet.py::test_row_groups_are_kept_up_to_a_bound_and_the_oldest_goes_first",
    ),
    Mutation(
        "remember that a row group could not be read",
        "sources/parquet.py",
        "                    del self._asked[key]\n                asked",
        "                    pass\n                asked",
        "test_parquet.py::test_a_row_group_that_could_not_be_read_is_asked_for_again",
    ),
    Mutation(
        "let a forked child wait for its parent's threads",
        "sources/parquet.py",
        "if self._groups.process_id != os.getpid():",
        "if False:",
        "test_parquet.py::test_a_forked_child_waits_for_no_thread_of_its_parent",
    ),
    Mutation(
        "take pages of Parquet whose checksum is wrong",
        "sources/parquet.py",
        "page_checksum_verification=True",
        "page_checksum_verification=False",
        "test_parquet.py::test_a_damaged_page_raises_under_its_files_name_and_is_never_a_sample",
    ),
    Mutation(
        "let the consumer read a batch that is still being copied",
        "prefetch.py",
        "            self._streams.wait(item.event)\n",
        "",
        "test_streams.py::test_the_consumer_reads_what_the_loader_made_however_late_things_happen[threads-late copies]",
    ),
    Mutation(
        "give device memory away while the consumer's kernels read it",
        "prefetch.py",
        "            map_tensors(self._keep, item.batch)\n",
        "",
        "test_streams.py::"
        "test_the_consumer_reads_what_the_loader_made_however_late_things_happen[threads-late kernels]",
    ),
    Mutation(
        "give a slot back before its copy has read it",
        "prefetch.py",
        "copying.append((streams.record(), batch))",
        "copying.append((streams.record(), None))",
        "test_streams.py::test_a_slot_is_held_until_its_copy_has_happened_and_no_longer",
    ),
    Mutation(
        "let the oldest copy go without waiting for it",
        "prefetch.py",
        "        streams.finish(copying[0][0])\n",
        "",
        "test_streams.py::test_however_an_epoch_ends_no_slot_goes_back_before_its_copy_has_happened[at its end]",
    ),
    Mutation(
        "hold a slot for as long as the epoch lasts",
        "prefetch.py",
        "                _let_go(copying, streams, self._num_batches)\n",
        "",
        "test_streams.py::test_a_slot_is_held_until_its_copy_has_happened_and_no_longer",
    ),
    Mutation(
        "forget the copies that an epoch's end leaves behind",
        "prefetch.py",
        "            _let_go(copying, streams, 0)\n",
        "            copying.clear()\n",
        "test_streams.py::test_however_an_epoch_ends_no_slot_goes_back_before_its_copy_has_happened[broken off]",
    ),
    Mutation(
        "issue copies on the consumer's stream",
        "prefetch.py",
        "                with streams.side():\n",
        "                if True:\n",
        "test_streams.py::test_the_consumer_reads_what_the_loader_made_however_late_things_happen[threads-late copies]",
    ),
    Mutation(
        "unlock pages while a batch still views them",
        "loader/slots.py",
        "weakref.finalize(_owner(memory), unpin)",
        "weakref.finalize(memory, unpin)",
        "test_streams.py::test_pages_are_unlocked_when_the_loader_and_the_last_batch_are_gone[threads]",
    ),
    Mutation(
        "trust a directory that changed just before it was read",
        "sources/index.py",
        "    return time.time_ns() - max(identity[2:]) > _SETTLED_NS\n",
        "    return True\n",
        "test_index.py::test_only_the_directory_that_changed_is_read_again",
    ),
    Mutation(
        "tell a directory by the time that can be set back",
        "sources/index.py",
        "status.st_mtime_ns, status.st_ctime_ns",
        "status.st_mtime_ns, status.st_mtime_ns",
        "test_index.py::test_a_directory_whose_time_was_set_back_is_read_again",
    ),
    Mutation(
        "trust a directory that holds links",
        "sources/walk.py",
        "        entry.has_links |= found.is_symlink()\n",
        "",
        "test_index.py::test_a_link_to_a_file_that_becomes_a_directory_is_seen",
    ),
    Mutation(
        "keep in the index what is gone",
        "sources/index.py",
        "            lasting = {name: entry for name, entry in self._seen.items() if entry.is_settled}\n",
        "            lasting = {**self._known, **self._seen}\n",
        "test_index.py::test_a_directory_that_goes_leaves_the_index",
    ),
    Mutation(
        "let every process walk that finds no index",
        "sources/index.py",
        "            self._lock.enter_context(self._file.locked())\n",
        "",
        "test_index.py::test_of_processes_that_start_together_one_walks_and_if_it_is_killed_another_does[finishes]",
    ),
    Mutation(
        "list a directory's images before those of directories in it",
        "sources/walk.py",
        "entry.children.append((name, len(names)))",
        "entry.children.append((name, 0))",
        "test_index.py::test_an_index_finds_what_a_walk_finds_whatever_was_changed_since",
    ),
    Mutation(
        "take a file from the index of an older one",
        "sources/index.py",
        "return known if known is not None and known.identity == identity else None",
        "return known",
        "test_index.py::test_a_file_is_read_once_until_it_changes[manifest]",
    ),
    Mutation(
        "trust directories of every file system",
        "sources/walk.py",
        "        if not self._keeps_times[device]:\n",
        "        if False:\n",
        "test_index.py::test_directories_whose_file_system_keeps_no_times_are_read_each_time",
    ),
    Mutation(
        "write again what another process wrote meanwhile",
        "sources/index.py",
        "                if not self._file.has_changed():",
        "                if True:",
        "test_index.py::test_what_another_process_wrote_meanwhile_is_not_written_again",
    ),
    Mutation(
        "take the index beside the data however old it is",
        "sources/index_file.py",
        "strict=True), reverse=True)",
        "strict=True), key=lambda _: 0)",
        "test_index.py::test_the_newer_of_two_indexes_is_used",
    ),
    Mutation(
        "read an index without looking whether it is whole",
        "sources/index_file.py",
        "    if digest != _digest(content):\n",
        "    if not digest:\n",
        "test_index.py::test_no_bit_of_an_index_can_be_another_unseen",
    ),
    Mutation(
        "leave what a killed writer wrote",
        "sources/index_file.py",
        '    temporary = f"{path}.part"\n',
        '    temporary = f"{path}.{os.getpid()}.part"\n',
        "test_index.py::test_a_killed_writers_part_is_written_over",
    ),
    Mutation(
        "let processes wait for directories that no index helps",
        "sources/walk.py",
        "        return 0 if self.has_links else len(self.hashes)\n",
        "        return len(self.hashes)\n",
        "test_index.py::test_directories_of_links_are_walked_without_an_index_and_without_waiting",
    ),
    Mutation(
        "train on files of the val split",
        "sources/parquet.py",
        "    if both := sorted(set(train) & set(val)):\n",
        "    if both := []:\n",
        "test_parquet.py::test_a_file_of_both_splits_is_refused",
    ),
    Mutation(
        "read rows of a file that was written anew",
        "sources/parquet.py",
        "        if self._version(path) != self._versions[number]:\n",
        "        if False:\n",
        "test_parquet.py::test_a_file_that_is_written_anew_while_it_is_read_ends_the_run_by_its_name",
    ),
    Mutation(
        "lay transparent pixels over white whatever is asked for",
        "decode/general.py",
        "(*background, 255)",
        "(255, 255, 255, 255)",
        "test_image_contract.py::test_transparent_pixels_of_every_kind_lie_over_the_background",
    ),
    Mutation(
        "ignore an orientation that only XMP tells",
        "orientation.py",
        "    in_xmp = _IN_XMP.search(xmp)\n",
        "    in_xmp = None\n",
        "test_decode.py::test_an_orientation_that_only_xmp_tells_counts_as_it_does_for_pillow",
    ),
    Mutation(
        "decode a PNG to look for its orientation",
        "decode/header.py",
        "if not is_told and not has_none and swaps_sides",
        "if not is_told and swaps_sides",
        "test_decode.py::test_a_png_is_decoded_once",
    ),
    Mutation(
        "cut every crop of an image by the first one's draws",
        "loader/order.py",
        "occurrence * self.num_crops + crop)",
        "occurrence)",
        "test_crops.py::test_every_crop_is_what_its_own_draws_make_of_the_image",
    ),
    Mutation(
        "count crops where images are counted",
        "loader/loader.py",
        "        num_samples = len(batch.ids) // self.num_crops\n",
        "        num_samples = len(batch.ids)\n",
        "test_crops.py::test_an_epoch_has_every_image_once_and_a_state_counts_images",
    ),
    Mutation(
        "give the labels of other images to crops",
        "loader/loader.py",
        "np.repeat(values, self.num_crops, axis=0)",
        "np.concatenate([values] * self.num_crops)",
        "test_crops.py::test_every_crop_is_what_its_own_draws_make_of_the_image",
    ),
    Mutation(
        "blur images of a batch by one another's kernels",
        "transforms/device.py",
        "            blurred.addcmul_(padded.narrow(dim, shift, images.shape[dim]), tap)\n",
        "            blurred.addcmul_(padded.narrow(dim, shift, images.shape[dim]), tap.flip(0))\n",
        "test_finish.py::test_workers_and_devices_agree_within_a_hundred_thousandth",
    ),
    Mutation(
        "erase a part of the first images instead of the drawn ones",
        "transforms/device.py",
        "    edges[rows] = boxes\n",
        "    edges[: len(rows)] = boxes\n",
        "test_finish.py::test_workers_and_devices_agree_within_a_hundred_thousandth",
    ),
    Mutation(
        "blur on a device and not in workers",
        "transforms/finish.py",
        "            if number in kernels:\n",
        "            if False:\n",
        "test_finish.py::test_where_it_is_done_changes_no_value_beyond_a_hundred_thousandth",
    ),
    Mutation(
        "ask a saved state for the place where colours were made",
        "build_source.py",
        "asdict(replace(transforms, place=Place.auto))",
        "asdict(transforms)",
        "test_finish.py::test_a_run_goes_on_wherever_colours_are_made",
    ),
    Mutation(
        "keep a closed loader's slots until the garbage collector comes by",
        "loader/slots.py",
        "        self._given_memory = memory\n",
        "        self._given_memory = memory or (lambda _: self._private_memory())\n",
        "test_slots.py::test_slots_go_with_their_ring_and_wait_for_no_garbage_collector",
    ),
    Mutation(
        "let all seeds decide how many are needed",
        "equivalence/tost.py",
        "statistics.stdev(differences[:num_first])",
        "statistics.stdev(differences)",
        "test_equivalence.py::test_later_seeds_do_not_change_how_many_are_needed",
    ),
    Mutation(
        "do the policy's operations without their signs",
        "transforms/policy.py",
        "return name, math.copysign(magnitude, sign - 0.5) if name in _SIGNED else magnitude",
        "return name, magnitude",
        "test_policy.py::test_every_operation_is_torchvisions_on_pil_to_the_bit",
    ),
    Mutation(
        "take waiting for Python's lock for computing",
        "stalls/lock.py",
        "((reads or steps) and steps_wait)",
        "False",
        "test_stall_report.py::test_reading_in_python_is_seen_to_hold_the_others_up",
    ),
    Mutation(
        "promise a run what only its epochs with a full cache have",
        "stalls/advice.py",
        "    if override != KEEP_PIXELS:\n        return speedup\n",
        "    return speedup\n",
        "test_stall_report.py::test_a_cache_is_promised_to_a_run_and_not_to_the_epochs_that_find_it_full",
    ),
    Mutation(
        "take the rest of an interrupted epoch for all first reads",
        "build_loading.py",
        "max(0.0, 1 - first / epoch_samples)",
        "0",
        "test_store_in_loaders.py::test_what_is_read_first_after_an_interruption_could_have_been_no_hit",
    ),
    Mutation(
        "promise a continuation where nothing was saved",
        "training/fit.py",
        "if not (self.run_dir / LAST).exists():",
        "if False:",
        "test_resume.py::test_a_disk_that_is_full_at_the_first_checkpoint_promises_no_continuation",
    ),
    Mutation(
        "let an empty path be the current directory",
        "config/data.py",
        'if getattr(self, name, None) == "":',
        "if False:",
        "test_cli.py::test_a_wrong_command_line_ends_in_one_line_and_exit_code_2",
    ),
    Mutation(
        "let Ctrl-C interrupt the imports of ranks that start",
        "dist/launch.py",
        "    resource_tracker.ensure_running()",
        "    pass",
        "test_dist.py::test_ctrl_c_while_ranks_start_is_one_line",
    ),
    Mutation(
        "exit with 0 when a batch could not be learnt",
        "cli.py",
        "has_reported(run_dir, did_overfit=False)",
        "False",
        "test_debug.py::test_overfit_says_no_where_the_labels_cannot_be_told_from_the_images",
    ),
    Mutation(
        "name the wrong key of a size that memory has no room for",
        "training/sizes.py",
        "        if cfg.schedule.sizes is None:\n            raise\n",
        "        raise\n",
        "test_sizes.py::test_a_size_that_memory_has_no_room_for_is_refused_before_the_first_step",
    ),
    Mutation(
        "take what an image costs for what each of its crops does",
        "training/stall_watch.py",
        "num_crops=pipeline.num_crops)",
        "num_crops=1)",
        "test_crops.py::test_the_stall_report_counts_crops_throughout",
    ),
    Mutation(
        "take a header that cannot be read for the end of a shard",
        "sources/tar_index.py",
        "            _require_end(shard, archive)\n",
        "",
        "test_webdataset.py::test_a_flipped_bit_in_any_header_or_in_the_end_is_refused",
    ),
    Mutation(
        "look no further than the first archive in a file",
        "sources/tar_index.py",
        "block = file.read(_PIECE_BYTES)",
        'block = b""',
        "test_webdataset.py::test_shards_put_behind_one_another_are_refused",
    ),
    Mutation(
        "pass over a bucket's classes that have no image",
        "sources/remote_files.py",
        "        require_images_of_each(place, class_names, labels)\n",
        "",
        "test_remote.py::test_a_tree_of_any_shape_in_a_bucket_is_taken_or_refused_as_a_local_copy",
    ),
    Mutation(
        "let a URL's signature decide which rows are for validation",
        "sources/remote.py",
        "posixpath.basename(unquote(urlsplit(path).path))",
        "posixpath.basename(path)",
        "test_remote.py::test_rows_stay_in_their_split_when_urls_are_signed_anew",
    ),
    Mutation(
        "take 1_1 for the number 11",
        "sources/labels.py",
        "[0-9]{1,300}",
        "[0-9_]{1,300}",
        "test_sources.py::test_manifest_labels_are_classes_values_or_names",
    ),
    Mutation(
        "round magnitudes twice",
        "transforms/policy.py",
        "step = float(np.float32(last - first) / np.float32(_NUM_BINS - 1))",
        "step = (last - first) / (_NUM_BINS - 1)",
        "test_policy.py::test_every_magnitude_is_torchvisions_to_the_bit",
    ),
    Mutation(
        "pin batches instead of converting them",
        "build_prefetch.py",
        "Batch.pin_memory if stage is None else lambda batch: stage(batch).pin_memory()",
        "Batch.pin_memory",
        "test_build.py::test_pinned_batches_have_the_type_that_was_asked_for",
    ),
    Mutation(
        "take another margin for the same question",
        "equivalence/runs.py",
        'asked = {**asdict(question), "overrides"',
        'asked = {**asdict(question), "margin": 0, "overrides"',
        "test_equivalence.py::test_runs_that_were_killed_go_on_and_finished_ones_are_not_run_again",
    ),
    Mutation(
        "let the native colour pass write planes into rows that are channels last",
        "transforms/finish.py",
        "is_planar=self._planes and not aside)",
        "is_planar=not aside)",
        "test_native_colour.py::test_rows_are_the_same_with_and_without_it",
    ),
    Mutation(
        "blur planes as if they were channels last",
        "transforms/finish.py",
        "(kernel is None or number in kernels)",
        "(kernel is None)",
        "test_native_colour.py::test_rows_are_the_same_with_and_without_it",
    ),
    Mutation(
        "clamp natively at the wrong end",
        "transforms/finish.py",
        "self._jitter.lower, self._jitter.upper, floats",
        "self._jitter.upper, self._jitter.lower, floats",
        "test_native_colour.py::test_rows_are_the_same_with_and_without_it",
    ),
    Mutation(
        "erase planes before they are written",
        "transforms/finish.py",
        "                image = row.transpose(1, 2, 0) if self._planes else row\n",
        "                image = floats\n",
        "test_native_colour.py::test_rows_are_the_same_with_and_without_it",
    ),
    Mutation(
        "round one sample's colour matrix to a finer grid than a batch's",
        "transforms/colour.py",
        "    largest_sum = 255 * (red + green + blue) + offset\n    steps = math.ldexp(",
        "    largest_sum = 127 * (red + green + blue) + offset\n    steps = math.ldexp(",
        "test_native_colour.py::test_one_samples_matrix_is_that_of_its_row_in_a_batch_to_the_bit",
    ),
    Mutation(
        "divide one sample's offset by the scale of its colours",
        "transforms/colour.py",
        "[*row, (offset - mean) / std]",
        "[*row, (offset - mean) / scale]",
        "test_native_colour.py::test_one_samples_matrix_is_that_of_its_row_in_a_batch_to_the_bit",
    ),
    Mutation(
        "look every row of a batch of planes up from the first image",
        "transforms/normalise.py",
        "kernel.look_up(image, self.table, row, True)",
        "kernel.look_up(pixels[0], self.table, row, True)",
        "test_native_colour.py::test_normalised_rows_are_the_same_with_and_without_it",
    ),
    Mutation(
        "use a native kernel that was built from other sources",
        "native/__init__.py",
        'if getattr(module, "VERSION", None) != VERSION:',
        "if False:",
        "test_native.py::test_the_package_works_without_it_and_says_why_it_is_not_there",
    ),
    Mutation(
        "decode the part of a mirrored image where it would be seen",
        "orientation.py",
        "left = width - left - num_columns if is_mirrored else left",
        "left = left",
        "test_native.py::test_a_part_of_what_exif_turns_has_the_pixels_of_the_whole",
    ),
    Mutation(
        "let other threads fork while an interpreter starts",
        "loader/worker_process.py",
        "    with _STARTING:\n",
        "    if command:\n",
        "test_processes.py::test_a_fork_waits_while_an_interpreter_starts_and_takes_no_pipe_of_it_along",
    ),
    Mutation(
        "continue a run with whatever resize auto is now",
        "training/run.py",
        "cfg = replace(cfg, transforms=cfg.transforms.resolved())",
        "cfg = replace(cfg, transforms=cfg.transforms)",
        "test_resume.py::test_where_auto_is_another_resize_a_run_is_not_continued",
    ),
    Mutation(
        "let copies to Apple's GPU go on while the slot is written to again",
        "streams.py",
        "        return tensor.to(self._device)\n",
        "        return tensor.to(self._device, non_blocking=True)\n",
        "test_prefetch.py::test_on_one_queue_every_tensor_is_copied_before_its_slot_is_let_go",
    ),
    Mutation(
        "look at no sample of evaluation before a run",
        "doctor/data.py",
        '        yield from guarded("samples", check_evaluation_samples, plan, val)\n',
        "",
        "test_doctor.py::test_an_evaluation_that_bad_images_would_end_is_an_error_though_they_are_passed_over",
    ),
    Mutation(
        "call a native kernel that cannot be loaded one that was not built",
        "native/__init__.py",
        'return None, f"built, but not to be loaded here: make native builds it anew ({error})"',
        'return None, "not built: make native builds it, or says why not"',
        "test_native.py::test_a_kernel_whose_libjpeg_cannot_be_loaded_is_not_used_and_that_is_said",
    ),
    Mutation(
        "keep it from the doctor that libjpeg's own Huffman decoder runs",
        "doctor/packages.py",
        "if kernel.replaces_libjpegs else",
        "if True else",
        "test_doctor.py::test_a_kernel_that_is_not_built_is_said_with_what_builds_it",
    ),
    Mutation(
        "leave the memory to nobody that a reader took where a sample had just gone",
        "cache/shared_store.py",
        """                with self._changing():
                    self._extents.forget(start_of(word), len(content))
""",
        "",
        "test_store_eviction.py::test_a_reader_who_comes_when_the_sample_has_gone_takes_no_memory",
    ),
    Mutation(
        "give the kernel's crops to other rows than their own",
        "transforms/sample.py",
        "JpegCrop(row, samples[row],",
        "JpegCrop(len(plans) - 1 - row, samples[row],",
        "test_native.py::test_several_encoded_samples_are_to_the_bit_what_each_is_alone",
    ),
    Mutation(
        "take the kernel's word for files that it has not made",
        "transforms/fused.py",
        "if is_made}, decode_s",
        "if True}, decode_s",
        "test_native.py::test_several_encoded_samples_are_to_the_bit_what_each_is_alone",
    ),
    Mutation(
        "write URLs with their queries into an index",
        "sources/tar_index.py",
        "return shard if remote is None else",
        "return shard if True else",
        "test_remote.py::test_what_is_kept_of_shards_has_no_query_in_it",
    ),
    Mutation(
        "give samples that differ in their query one name",
        "sources/remote_files.py",
        " if query else shown(url)",
        " if False else shown(url)",
        "test_remote.py::test_sources_at_urls_keep_the_contract[queries]",
    ),
    Mutation(
        "convert profiles of general images only",
        "decode/__init__.py",
        "        convert_profile(data, pixels)\n",
        "        pass\n",
        "test_image_contract.py::test_a_colour_profile_is_applied_if_that_is_asked_for[JPEG]",
    ),
    Mutation(
        "give pixels on another background for those that a pack keeps",
        "build_pack.py",
        "    if transforms.background != usual.background:\n",
        "    if False:\n",
        "test_image_contract.py::test_caches_and_packs_keep_the_pixels_that_are_asked_for[background]",
    ),
    Mutation(
        "fill a store with pixels rendered as usual",
        "build_loading.py",
        "rendering=rendering, stats",
        "stats",
        "test_image_contract.py::test_caches_and_packs_keep_the_pixels_that_are_asked_for[icc]",
    ),
    Mutation(
        "lose the alpha of pixels that have a profile",
        "decode/general.py",
        "    colours.putalpha(alpha)\n",
        "    colours.putalpha(255)\n",
        "test_image_contract.py::test_a_profile_is_applied_below_transparency_and_not_to_the_background",
    ),
    Mutation(
        "wait for whoever writes to a pipe named as an image",
        "sources/files.py",
        'os.open(path, flags | getattr(os, "O_NONBLOCK", 0))',
        "os.open(path, flags)",
        "test_odd_files.py::"
        "test_pipes_sockets_and_devices_named_as_images_are_bad_samples_that_nobody_waits_for[serial]",
    ),
    Mutation(
        "take memory for whatever a header announces",
        "decode/header.py",
        "if num_pixels > _MAX_PIXELS_A_BYTE * len(jpeg) and",
        "if False and",
        "test_odd_files.py::test_a_header_of_more_pixels_than_the_file_can_hold_takes_no_memory",
    ),
    Mutation(
        "write a quarantine that names of any bytes do not fit into",
        "quarantine.py",
        'with self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:',
        'with self.path.open("a", newline="", encoding="utf-8", errors="replace") as file:',
        "test_odd_files.py::test_names_of_any_bytes_are_read_and_quarantined_by_those_bytes[serial]",
    ),
    Mutation(
        "wait for ever for a server that stalls",
        "sources/remote.py",
        "url, timeout=self._timeout_s, **options)",
        "url, timeout=45.0, **options)",
        "test_remote.py::test_what_the_network_does_wrong_twice_is_tried_again[stall inside]",
    ),
    Mutation(
        "take fewer bytes than were asked for",
        "sources/remote.py",
        "            if size is not None and len(data) < size:\n",
        "            if False:\n",
        "test_remote.py::test_a_range_behind_the_end_is_no_data",
    ),
    Mutation(
        "take a whole file for a range of it",
        "sources/remote.py",
        "            if size is not None and len(data) > size:\n",
        "            if False:\n",
        "test_remote.py::test_a_server_that_takes_no_ranges_is_found_out",
    ),
    Mutation(
        "show a URL's secrets",
        "sources/remote.py",
        'parts.netloc.rpartition("@")[2], parts.path, "", ""',
        'parts.netloc, parts.path, parts.query, ""',
        "test_remote.py::test_what_it_does_wrong_every_time_is_an_error_with_the_cause_and_without_secrets[500]",
    ),
    Mutation(
        "let the cache of remote files grow",
        "sources/disk_cache.py",
        "        if kept_bytes + num_bytes > self._max_bytes:\n",
        "        if False:\n",
        "test_remote.py::test_a_cache_keeps_its_bound_and_what_was_used_last",
    ),
    Mutation(
        "believe a damaged blob",
        "sources/disk_cache.py",
        "return data if _digest(data) == content[:_DIGEST_BYTES] else None",
        "return data",
        "test_remote.py::test_a_damaged_blob_counts_as_not_there[zeros]",
    ),
    Mutation(
        "give what was kept of an earlier version",
        "sources/remote.py",
        'key = f"{url}\\0{start}\\0{size}\\0{version}"',
        'key = f"{url}\\0{start}\\0{size}"',
        "test_remote.py::test_what_was_read_is_not_asked_for_again_by_any_process_nor_given_for_another_version",
    ),
    Mutation(
        "keep connections across a fork",
        "sources/remote.py",
        "        if self._process_id != os.getpid():\n",
        "        if False:\n",
        "test_remote.py::test_a_forked_child_has_connections_of_its_own",
    ),
    Mutation(
        "take metadata of a shard for samples",
        "sources/tar_index.py",
        "or not dot or _METADATA.match(member.name)",
        "or not dot",
        "test_webdataset.py::test_members_that_the_format_takes_for_no_sample_are_passed_over_as_the_library_does",
    ),
    Mutation(
        "take a hidden member of a shard for a sample",
        "sources/tar_index.py",
        "or not stem or not dot",
        "or not dot",
        "test_webdataset.py::test_members_that_the_format_takes_for_no_sample_are_passed_over_as_the_library_does",
    ),
    Mutation(
        "take a member without a suffix for a sample",
        "sources/tar_index.py",
        "or not stem or not dot",
        "or not stem",
        "test_webdataset.py::test_members_that_the_format_takes_for_no_sample_are_passed_over_as_the_library_does",
    ),
    Mutation(
        "let the last of two labels in a shard win",
        "sources/tar_index.py",
        "elif suffix == sample.label_suffix:",
        "elif False:",
        "test_webdataset.py::test_a_key_twice_in_one_shard_is_refused_as_the_library_refuses_it",
    ),
    Mutation(
        "end the key of a shard's member at its last dot",
        "sources/tar_index.py",
        'stem, dot, suffix = name.partition(".")',
        'stem, dot, suffix = name.rpartition(".")',
        "test_webdataset.py::test_each_form_of_sample_is_read_as_the_library_reads_it",
    ),
    Mutation(
        "drop the directory from the key of a shard's member",
        "sources/tar_index.py",
        "key, suffix = os.path.join(directory, stem), suffix.lower()",
        "key, suffix = stem, suffix.lower()",
        "test_webdataset.py::test_keys_that_differ_in_their_directory_alone_are_samples_of_their_own",
    ),
    Mutation(
        "keep capitals in the suffix of a shard's member",
        "sources/tar_index.py",
        "os.path.join(directory, stem), suffix.lower()",
        "os.path.join(directory, stem), suffix",
        "test_webdataset.py::test_each_form_of_sample_is_read_as_the_library_reads_it",
    ),
    Mutation(
        "turn a TIFF by XMP and not its size",
        "decode/header.py",
        'is_told = image.format == "TIFF" and _ORIENTATION_TAG in getattr(image, "tag_v2", {})',
        'is_told = image.format == "TIFF"',
        "test_image_contract.py::test_an_orientation_that_only_xmp_tells_turns_a_tiff_and_its_size[None]",
    ),
    Mutation(
        "show truncated images where Pillow was told to",
        "decode/general.py",
        "    if ImageFile.LOAD_TRUNCATED_IMAGES:\n",
        "    if False:\n",
        "test_image_contract.py::test_pillow_may_not_be_told_to_show_truncated_images",
    ),
    Mutation(
        "stop only the ranks that a signal reached",
        "training/stopping.py",
        "agreed = int(self._world.greatest(self._asked or 0))",
        "agreed = int(self._asked or 0)",
        "test_dist.py::test_a_signal_at_one_rank_stops_all_of_them_at_one_step",
    ),
]


def check(mutation: Mutation) -> str:
    """Run the mutation's test on an edited copy; "caught", or what happened instead."""
    source = (ROOT / "pipeline" / mutation.file).read_text()
    if source.count(mutation.old) != 1:
        return f"the text to change stands {source.count(mutation.old)} times in {mutation.file}"
    edit = (mutation.file, source.replace(mutation.old, mutation.new))
    for _ in range(MAX_TRIES):
        code, _ = run_tests([mutation.test], edit=edit)
        if code != -signal.SIGALRM:
            break
    else:  # it hung: by the breakage, then it will again, or by a library that was forked here, then not elsewhere
        if IS_ALONE not in os.environ:
            command = [sys.executable, __file__, mutation.name]
            alone = subprocess.run(command, env=os.environ | {IS_ALONE: "1"}, capture_output=True, check=False)
            code = 1 if alone.returncode == 0 else code
    # pytest's exit codes: 1 is a failed test; 4 and 5 say that the test was not found, 2 that it could not run.
    return "caught" if code == 1 else f"not caught (exit code {code} of {mutation.test})"


class Failures:
    """A plugin of pytest that writes the names of tests that fail into `file`, a line each."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            with self._file.open("a") as file:
                file.write(report.nodeid.removeprefix("tests/") + "\n")


def run_tests(tests: list[str], edit: tuple[str, str] | None = None) -> tuple[int, list[str]]:
    """Run `tests` in a forked child on a copy of the project in which `edit` was made, up to the first that fails.

    Returns pytest's exit code and the tests that failed.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-mutant-") as directory:
        child = os.fork()
        if child == 0:
            try:
                os._exit(_run_in_copy(Path(directory), tests, edit))
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(70)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        failed = Path(directory, FAILED)
        return code, failed.read_text().splitlines() if failed.exists() else []


def _run_in_copy(directory: Path, tests: list[str], edit: tuple[str, str] | None) -> int:
    for part in ("pipeline", "conf", "hydra_plugins", "tests"):
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "train.py", "bench.py"):
        shutil.copy(ROOT / part, directory / part)
    if edit is not None:
        (directory / "pipeline" / edit[0]).write_text(edit[1])
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    os.environ["PYTHONPATH"] = str(directory)
    nowhere = os.open(os.devnull, os.O_WRONLY)  # children report by their exit code; a crash still shows on stderr
    os.dup2(nowhere, 1)
    signal.alarm(MAX_SECONDS * len(set(tests)))  # a breakage that hangs its test is not caught by it
    import pytest

    options = ["-x", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0"]
    names = [f"tests/{test}" for test in dict.fromkeys(tests)]
    code = pytest.main([*options, *names], plugins=[Failures(directory / FAILED)])
    assert Path(sys.modules["pipeline"].__file__ or "").is_relative_to(directory), "the copy was not what ran"
    return int(code)


def start_lane(mutations: list[Mutation]) -> int:
    """Check `mutations` one after another in a child, and return the pipe that gives the results as JSON, at its end.

    First comes their control. A child and no thread: the tests' processes are forked.
    """
    reader, writer = os.pipe()
    if os.fork() > 0:
        os.close(writer)
        return reader
    try:
        with open(writer, "w") as file:
            control = timed(CONTROL, partial(run_control, mutations))
            checked = {mutation.name: timed(mutation.name, partial(check, mutation)) for mutation in mutations}
            json.dump({CONTROL: control} | checked, file)
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def run_control(mutations: list[Mutation]) -> str:
    """Run all the tests of `mutations` on an unedited copy; "passed", or what happened instead."""
    tests = [mutation.test for mutation in mutations]
    code, failed = run_tests(tests)
    if code == 1:  # tests of what takes long fail now and then where much else runs; what always fails, fails again
        code, failed = run_tests([*failed, *tests])
    return "passed" if code == 0 else f"exit code {code} without any edit: {', '.join(failed) or 'no test failed'}"


def timed(name: str, run: Callable[[], str]) -> str:
    """What `run` returns, with a line for people."""
    began = time.perf_counter()
    result = run()
    sys.stderr.write(f"{name:58} {result} after {time.perf_counter() - began:.0f} s\n")
    return result


def main(names: list[str]) -> int:
    """Check the mutations named, or all; print a line each and, for the test suite, the results as JSON."""
    import cv2  # noqa: F401  here and below: heavy imports that children inherit
    import matplotlib.pyplot  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    results: dict[str, str] = {}
    controls = []
    for lane in [start_lane(chosen[first::NUM_AT_ONCE]) for first in range(min(NUM_AT_ONCE, len(chosen)))]:
        with open(lane) as file:
            results |= json.loads(file.read())
        controls.append(results[CONTROL])
    results[CONTROL] = next((control for control in controls if control != "passed"), "passed")
    sys.stdout.write(json.dumps(results) + "\n")
    return int(any(result not in ("caught", "passed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
