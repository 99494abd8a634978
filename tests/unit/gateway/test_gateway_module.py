"""The picker's C code against a table of replicas that changes in every way: only healthy ones, never out of bounds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lepton_ai.gateway.picker import SOURCE, compiler

# Ends with 1 when a pick is out of bounds, of a replica that is not healthy, or missing though there is a healthy one.
FUZZ = r"""
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#define LEVELS 12
#define MOST 600
typedef struct { const char *ptr; size_t length; } buffer;
static size_t count[LEVELS];
static int levels, health[LEVELS][MOST];
static char names[LEVELS][MOST][16];
static uint64_t stats[LEVELS][MOST][8];
static double now_s = 1;
int fuzz_clock(clockid_t id, struct timespec *now) {
  (void)id;
  now->tv_sec = (time_t)now_s;
  now->tv_nsec = (long)((now_s - (double)(time_t)now_s) * 1e9);
  return 0;
}
static void within(uint32_t level, size_t index) { if (level >= LEVELS || index >= count[level]) exit(1); }
static size_t healthy(uint32_t level) {
  size_t found = 0;
  for (size_t index = 0; index < count[level]; index++) found += health[level][index] == 2;
  return found;
}
size_t envoy_dynamic_module_callback_lb_get_priority_set_size(void *lb) { (void)lb; return (size_t)levels; }
size_t envoy_dynamic_module_callback_lb_get_hosts_count(void *lb, uint32_t level) { (void)lb; return count[level]; }
size_t envoy_dynamic_module_callback_lb_get_healthy_hosts_count(void *lb, uint32_t level) {
  (void)lb; return healthy(level);
}
int envoy_dynamic_module_callback_lb_get_host_health(void *lb, uint32_t level, size_t index) {
  (void)lb; within(level, index); return health[level][index];
}
bool envoy_dynamic_module_callback_lb_get_host_address(void *lb, uint32_t level, size_t index, buffer *to) {
  (void)lb; within(level, index);
  if (rand() % 50 == 0) return false;
  to->ptr = names[level][index]; to->length = 8; return true;
}
uint32_t envoy_dynamic_module_callback_lb_get_host_weight(void *lb, uint32_t level, size_t index) {
  (void)lb; within(level, index); return rand() % 5 == 0 ? 0 : (uint32_t)(rand() % 400);
}
uint64_t envoy_dynamic_module_callback_lb_get_host_stat(void *lb, uint32_t level, size_t index, int stat) {
  (void)lb; within(level, index); return stats[level][index][stat];
}
bool envoy_dynamic_module_callback_lb_context_should_select_another_host(void *lb, void *c, uint32_t l, size_t i) {
  (void)lb, (void)c; within(l, i); return rand() % 3 == 0;
}
void *envoy_dynamic_module_on_lb_new(void *, void *);
void envoy_dynamic_module_on_lb_destroy(void *);
void envoy_dynamic_module_on_lb_on_host_membership_update(void *, void *, size_t, size_t);
bool envoy_dynamic_module_on_lb_choose_host(void *, void *, void *, uint32_t *, uint32_t *);
static void change(void) {
  for (int level = 0; level < levels; level++) {
    count[level] = rand() % 4 == 0 ? 0 : (size_t)(rand() % (rand() % 6 == 0 ? MOST : 20));
    for (size_t index = 0; index < count[level]; index++) {
      snprintf(names[level][index], 16, "%08d", rand() % 300);
      health[level][index] = rand() % 3;
      for (int stat = 0; stat < 8; stat++) stats[level][index][stat] = rand() % 7 ? (uint64_t)(rand() % 1000) : ~0ull;
    }
  }
}
int main(void) {
  srand(1);
  for (int round = 0; round < 30; round++) {
    void *module = envoy_dynamic_module_on_lb_new(NULL, NULL);
    levels = rand() % LEVELS;
    for (int step = 0; step < 40; step++) {
      change();
      if (rand() % 2) envoy_dynamic_module_on_lb_on_host_membership_update(NULL, module, 1, 1);
      for (int times = 0; times < 20; times++) {
        uint32_t level = 99, index = 99;
        bool any = false;
        now_s += rand() % 9 ? rand() % 1000 * 1e-3 : -5;
        bool found = envoy_dynamic_module_on_lb_choose_host(NULL, module, NULL, &level, &index);
        for (uint32_t at = 0; (int)at < levels && at < 8; at++) any |= healthy(at) > 0;
        if (found != any || (found && ((int)level >= levels || index >= healthy(level)))) return 1;
      }
    }
    envoy_dynamic_module_on_lb_destroy(module);
  }
  puts("well");
  return 0;
}
"""


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_a_pick_is_always_a_healthy_replica(tmp_path: Path) -> None:
    source, made = tmp_path / "fuzz.c", tmp_path / "fuzz"
    source.write_text(FUZZ, "utf-8")
    command = [
        *(compiler() or ()),
        "-g",
        "-O1",
        "-Dclock_gettime=fuzz_clock",
        "-o",
        str(made),
        str(SOURCE),
        str(source),
    ]
    watched = subprocess.run(
        [*command, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-lm"],
        capture_output=True,
        check=False,
    )
    if watched.returncode != 0:  # a compiler without these libraries
        subprocess.run([*command, "-lm"], capture_output=True, check=True)
    done = subprocess.run([str(made)], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr[-2000:]
