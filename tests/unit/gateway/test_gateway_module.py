"""The picker's C code against a table of replicas that changes in every way: only healthy ones, never out of bounds;
and after a time in which every request failed it knows again what each replica can do."""

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
static long late; /* so many are healthy already that Envoy's list does not have yet */
static size_t healthy(uint32_t level) {
  size_t found = 0;
  for (size_t index = 0; index < count[level]; index++) found += health[level][index] == 2;
  return found;
}
size_t envoy_dynamic_module_callback_lb_get_priority_set_size(void *lb) { (void)lb; return (size_t)levels; }
size_t envoy_dynamic_module_callback_lb_get_hosts_count(void *lb, uint32_t level) { (void)lb; return count[level]; }
size_t envoy_dynamic_module_callback_lb_get_healthy_hosts_count(void *lb, uint32_t level) {
  (void)lb;
  size_t found = healthy(level);
  return found > 1 && late ? found - 1 : found;
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
        late = rand() % 4 == 0;
        now_s += rand() % 9 ? rand() % 1000 * 1e-3 : -5;
        bool found = envoy_dynamic_module_on_lb_choose_host(NULL, module, NULL, &level, &index);
        for (uint32_t at = 0; (int)at < levels && at < 8; at++) any |= healthy(at) > 0;
        if (found != any) return 1;
        if (found && ((int)level >= levels || index >= healthy(level) - (healthy(level) > 1 && late))) return 1;
      }
    }
    envoy_dynamic_module_on_lb_destroy(module);
  }
  puts("well");
  return 0;
}
"""


# Two replicas, the second four times as fast. Ends with 1 when the picker no longer tells them apart after an outage.
OUTAGE = r"""
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
typedef struct { const char *ptr; size_t length; } buffer;
static double now_s = 1, free_s[2], ends_s[2][4096];
static uint64_t answered[2], failed[2], head[2], tail[2];
static const double takes_s[2] = {0.04, 0.01};
static bool broken;
int fuzz_clock(clockid_t id, struct timespec *now) {
  (void)id;
  now->tv_sec = (time_t)now_s;
  now->tv_nsec = (long)((now_s - (double)(time_t)now_s) * 1e9);
  return 0;
}
size_t envoy_dynamic_module_callback_lb_get_priority_set_size(void *lb) { (void)lb; return 1; }
size_t envoy_dynamic_module_callback_lb_get_hosts_count(void *lb, uint32_t l) { (void)lb, (void)l; return 2; }
size_t envoy_dynamic_module_callback_lb_get_healthy_hosts_count(void *lb, uint32_t l) { (void)lb, (void)l; return 2; }
int envoy_dynamic_module_callback_lb_get_host_health(void *lb, uint32_t l, size_t i) {
  (void)lb, (void)l, (void)i; return 2;
}
bool envoy_dynamic_module_callback_lb_get_host_address(void *lb, uint32_t l, size_t i, buffer *to) {
  (void)lb, (void)l; to->ptr = i ? "b" : "a"; to->length = 1; return true;
}
uint32_t envoy_dynamic_module_callback_lb_get_host_weight(void *lb, uint32_t l, size_t i) {
  (void)lb, (void)l, (void)i; return 100;
}
uint64_t envoy_dynamic_module_callback_lb_get_host_stat(void *lb, uint32_t l, size_t i, int stat) {
  (void)lb, (void)l; return stat == 2 ? failed[i] : stat == 3 ? answered[i] : tail[i] - head[i];
}
bool envoy_dynamic_module_callback_lb_context_should_select_another_host(void *lb, void *c, uint32_t l, size_t i) {
  (void)lb, (void)c, (void)l, (void)i; return false;
}
void *envoy_dynamic_module_on_lb_new(void *, void *);
bool envoy_dynamic_module_on_lb_choose_host(void *, void *, void *, uint32_t *, uint32_t *);
void envoy_dynamic_module_on_lb_destroy(void *);
static double share(void *module, double seconds) { /* of the fast one, over the last half */
  double from_s = now_s + seconds / 2, to_s = now_s + seconds;
  int count[2] = {0, 0};
  while (now_s < to_s) {
    now_s += 0.02 * (rand() % 1000) * 1e-3;
    for (int i = 0; i < 2; i++) {
      while (head[i] < tail[i] && ends_s[i][head[i] % 4096] <= now_s) head[i]++, answered[i]++;
    }
    uint32_t level, index;
    if (!envoy_dynamic_module_on_lb_choose_host(NULL, module, NULL, &level, &index)) exit(2);
    if (now_s > from_s) count[index]++;
    if (broken) { failed[index]++; continue; }
    free_s[index] = (free_s[index] > now_s ? free_s[index] : now_s) + takes_s[index];
    ends_s[index][tail[index]++ % 4096] = free_s[index];
  }
  return (double)count[1] / (count[0] + count[1]);
}
int main(void) {
  srand(1);
  void *module = envoy_dynamic_module_on_lb_new(NULL, NULL);
  double before = share(module, 60);
  broken = true;
  share(module, 300);
  broken = false;
  double after = share(module, 120);
  envoy_dynamic_module_on_lb_destroy(module);
  printf("%.2f %.2f\n", before, after);
  return before < 0.7 || after < before - 0.1 || after > before + 0.1;
}
"""


def _said(tmp_path: Path, text: str) -> tuple[int, str, str]:
    """Exit status and what is printed by the picker together with `text`, watched where the compiler can."""
    source, made = tmp_path / "fuzz.c", tmp_path / "fuzz"
    source.write_text(text, "utf-8")
    names = ["-Dclock_gettime=fuzz_clock", "-o", str(made), str(SOURCE), str(source)]
    command = [*(compiler() or ()), "-g", "-O1", *names]
    watched = subprocess.run(
        [*command, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-lm"],
        capture_output=True,
        check=False,
    )
    if watched.returncode != 0:  # a compiler without these libraries
        subprocess.run([*command, "-lm"], capture_output=True, check=True)
    done = subprocess.run([str(made)], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout.strip(), done.stderr[-2000:]


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_a_pick_is_always_a_healthy_replica(tmp_path: Path) -> None:
    status, said, error = _said(tmp_path, FUZZ)
    assert (status, said) == (0, "well"), error


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_an_outage_of_all_replicas_is_forgotten_after_it(tmp_path: Path) -> None:
    status, said, error = _said(tmp_path, OUTAGE)
    assert status == 0, (said, error)
