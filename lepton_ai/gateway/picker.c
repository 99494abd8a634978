/* The gateway's picker: which replica a request goes to, inside Envoy, as a dynamic module.
 *
 * Owns one decision: the replica where the request is expected to be done first, which is the least of
 * (requests in flight + 1) / capacity over all healthy replicas of the first level that has any. Capacity is learned
 * here, from what Envoy counts for every replica, at every pick: answers per busy second of the last moments. Envoy's
 * own LEAST_REQUEST knows no capacity (equal weights) or looks at its load only when a replica was picked (unequal
 * weights, an EDF schedule). `picker.py` builds this file and asks Envoy whether it takes it; where there is no
 * compiler LEAST_REQUEST over all replicas stands in.
 *
 * How capacity is estimated. Per replica, with a memory of some fifty requests' time (at least a second):
 *   answers: those that were no error, with the weight of the replica's own last moments;
 *   busy: seconds, counted as the square root of what is in flight. A replica that works on one request at a time is
 *     busy for one second a second whatever waits (power 0 would be exact); for one that works on all at once seconds
 *     add up (power 1). The root is near enough to both, and with it nothing runs away: more requests never make a
 *     replica look faster.
 *   capacity = (answers + PRIOR) / (busy + PRIOR / expected), where `expected` is the mean over all replicas, shared
 *     out by the weights that control gives. So a replica that was not asked lately is expected to be like the others,
 *     is tried with one request, and is found again when it has recovered.
 * An error counts as a mean request's time without an answer: a replica that fails fast is not taken for a fast one.
 * The mean is over failed requests too. Over answers alone it would grow by itself for as long as most requests fail,
 * and be of no use for hours after.
 *
 * The functions are Envoy's (source/extensions/dynamic_modules/abi/abi.h); only what is used is declared. One instance
 * a worker thread, so nothing is locked. It never allocates while picking, only when the set of replicas has changed.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PRIOR 3.0       /* requests; what is expected of a replica weighs as much as so many that were measured */
#define MEMORY 50.0     /* requests' time that is remembered */
#define MEMORY_S_LEAST 1.0
#define MEMORY_S_MOST 60.0
#define EACH_S_MOST 3600.0 /* however long nothing is done: figures stay finite */
#define SCANNED 128     /* of more replicas so many neighbours from a random place on are compared */
#define LEVELS 8
#define HEALTHY 2       /* envoy_dynamic_module_type_host_health */
#define RQ_ERROR 2      /* envoy_dynamic_module_type_host_stat */
#define RQ_SUCCESS 3
#define RQ_ACTIVE 7

typedef struct {
  const char *ptr;
  size_t length;
} buffer;

size_t envoy_dynamic_module_callback_lb_get_priority_set_size(void *lb);
size_t envoy_dynamic_module_callback_lb_get_hosts_count(void *lb, uint32_t level);
size_t envoy_dynamic_module_callback_lb_get_healthy_hosts_count(void *lb, uint32_t level);
int envoy_dynamic_module_callback_lb_get_host_health(void *lb, uint32_t level, size_t index);
bool envoy_dynamic_module_callback_lb_get_host_address(void *lb, uint32_t level, size_t index, buffer *address);
uint32_t envoy_dynamic_module_callback_lb_get_host_weight(void *lb, uint32_t level, size_t index);
uint64_t envoy_dynamic_module_callback_lb_get_host_stat(void *lb, uint32_t level, size_t index, int stat);
bool envoy_dynamic_module_callback_lb_context_should_select_another_host(void *lb, void *context, uint32_t level,
                                                                         size_t index);

typedef struct {
  uint64_t name; /* of its address, 64 bits */
  uint64_t answered, failed;
  double seen_s, answers, errors, busy_s;
} replica;

typedef struct {
  replica *replicas;
  size_t count;
  double done, busy_s, weight; /* sums (answers and errors) and mean of the last scan */
  bool stale;                  /* the set has changed */
} level_state;

typedef struct {
  level_state levels[LEVELS];
  uint64_t random;
} picker;

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t draw(picker *self) { /* xorshift64* */
  self->random ^= self->random >> 12;
  self->random ^= self->random << 25;
  self->random ^= self->random >> 27;
  return self->random * 2685821657736338717ULL;
}

static uint64_t name_of(void *lb, uint32_t level, size_t index) { /* FNV-1a */
  buffer address = {NULL, 0};
  uint64_t name = 14695981039346656037ULL;
  envoy_dynamic_module_callback_lb_get_host_address(lb, level, index, &address);
  for (size_t at = 0; address.ptr != NULL && at < address.length; at++) {
    name = (name ^ (unsigned char)address.ptr[at]) * 1099511628211ULL;
  }
  return name;
}

/* The set of replicas changed: those that stay keep what is known of them. False: no memory, all as it was. */
static bool rebuild(level_state *state, void *lb, uint32_t level, size_t count, double at_s) {
  replica *made = calloc(count ? count : 1, sizeof(replica));
  if (made == NULL) return false;
  for (size_t index = 0; index < count; index++) {
    replica *one = &made[index];
    one->name = name_of(lb, level, index);
    one->seen_s = at_s;
    const replica *known = NULL;
    for (size_t step = 0; step < state->count && known == NULL; step++) {
      const replica *other = &state->replicas[(index + step) % state->count]; /* mostly in the same order */
      if (other->name == one->name) known = other;
    }
    if (known != NULL) {
      *one = *known;
    } else {
      one->answered = envoy_dynamic_module_callback_lb_get_host_stat(lb, level, index, RQ_SUCCESS);
      one->failed = envoy_dynamic_module_callback_lb_get_host_stat(lb, level, index, RQ_ERROR);
    }
  }
  free(state->replicas);
  state->replicas = made;
  state->count = count;
  state->stale = false;
  return true;
}

/* Takes in what happened to the replica since it was last looked at. `each_s`: a mean request's time, 0: unknown. */
static void learn(replica *one, double at_s, uint64_t active, uint64_t answered, uint64_t failed, double each_s) {
  double memory_s = fmin(fmax(MEMORY * each_s, MEMORY_S_LEAST), MEMORY_S_MOST);
  double passed_s = fmax(at_s - one->seen_s, 0.0), x = passed_s / memory_s;
  double kept = 1.0 / (1.0 + x + 0.5 * x * x); /* near exp(-x), and cheap */
  double answers = answered >= one->answered ? (double)(answered - one->answered) : 0.0;
  double errors = failed >= one->failed ? (double)(failed - one->failed) : 0.0;
  /* With nothing in flight now it was busy for what its answers took, not for the whole time. */
  double busy_s = active ? sqrt((double)active) * passed_s : fmin(passed_s, answers * each_s);
  one->seen_s = at_s;
  one->answered = answered;
  one->failed = failed;
  one->answers = one->answers * kept + answers;
  one->errors = one->errors * kept + errors;
  one->busy_s = one->busy_s * kept + busy_s * 0.5 * (1.0 + kept) + errors * each_s;
}

static bool pick(picker *self, void *lb, void *context, uint32_t level, uint32_t *found) {
  level_state *state = &self->levels[level];
  size_t count = envoy_dynamic_module_callback_lb_get_hosts_count(lb, level);
  size_t healthy = envoy_dynamic_module_callback_lb_get_healthy_hosts_count(lb, level);
  double at_s = now_s();
  if (healthy == 0) return false;
  if ((state->stale || count != state->count) && !rebuild(state, lb, level, count, at_s)) {
    *found = (uint32_t)(draw(self) % healthy);
    return true;
  }
  bool some = count > SCANNED && healthy == count; /* else the index among the healthy is not known without a scan */
  size_t looked = some ? SCANNED : count, first = some ? draw(self) % count : 0;
  double each_s = state->done > 0.0 ? fmin(state->busy_s / state->done, EACH_S_MOST) : 0.0;
  double done = 0.0, busy_s = 0.0, weights = 0.0, best = INFINITY, spare = INFINITY;
  uint32_t place = 0, instead = 0, ties = 0, seen = 0;
  bool any = false;
  for (size_t step = 0; step < looked; step++) {
    size_t index = (first + step) % count;
    if (envoy_dynamic_module_callback_lb_get_host_health(lb, level, index) != HEALTHY) continue;
    replica *one = &state->replicas[index];
    uint64_t active = envoy_dynamic_module_callback_lb_get_host_stat(lb, level, index, RQ_ACTIVE);
    learn(one, at_s, active, envoy_dynamic_module_callback_lb_get_host_stat(lb, level, index, RQ_SUCCESS),
          envoy_dynamic_module_callback_lb_get_host_stat(lb, level, index, RQ_ERROR), each_s);
    double weight = (double)envoy_dynamic_module_callback_lb_get_host_weight(lb, level, index);
    weight = weight > 0.0 ? weight : 1.0;
    uint32_t healthy_index = some ? (uint32_t)index : seen;
    seen++;
    done += one->answers + one->errors;
    busy_s += one->busy_s;
    weights += weight;
    double share = state->weight > 0.0 ? weight / state->weight : 1.0;
    double cost = (double)(active + 1) *
                  (each_s > 0.0 ? (one->busy_s + PRIOR * each_s / share) / (one->answers + PRIOR) : 1.0 / share);
    if (cost < spare) {
      spare = cost;
      instead = healthy_index;
    }
    if (cost > best) continue;
    if (envoy_dynamic_module_callback_lb_context_should_select_another_host(lb, context, level, index)) continue;
    ties = cost < best ? 1 : ties + 1;
    if (ties > 1 && draw(self) % ties != 0) continue;
    best = cost;
    place = healthy_index;
    any = true;
  }
  if (seen == 0) return false;
  state->done = done;
  state->busy_s = busy_s;
  state->weight = weights / (double)seen;
  *found = any ? place : instead; /* a retry that has been everywhere goes where it would have gone */
  /* A replica's health changes a moment before Envoy's list of the healthy ones does. */
  if (*found >= healthy) *found = (uint32_t)(healthy - 1);
  return true;
}

const char *envoy_dynamic_module_on_program_init(void) { return "v1.40.0"; }

void *envoy_dynamic_module_on_lb_config_new(void *config, buffer name, buffer text) {
  (void)config, (void)name, (void)text;
  static char one;
  return &one;
}

void envoy_dynamic_module_on_lb_config_destroy(void *config) { (void)config; }

void *envoy_dynamic_module_on_lb_new(void *config, void *lb) {
  (void)config, (void)lb;
  picker *self = calloc(1, sizeof(picker));
  if (self != NULL) self->random = ((uint64_t)(now_s() * 1e9) ^ (uintptr_t)self) | 1;
  return self;
}

void envoy_dynamic_module_on_lb_destroy(void *lb) {
  picker *self = lb;
  for (size_t level = 0; self != NULL && level < LEVELS; level++) free(self->levels[level].replicas);
  free(self);
}

void envoy_dynamic_module_on_lb_on_host_membership_update(void *lb, void *module, size_t added, size_t removed) {
  (void)lb, (void)added, (void)removed;
  for (size_t level = 0; level < LEVELS; level++) ((picker *)module)->levels[level].stale = true;
}

bool envoy_dynamic_module_on_lb_choose_host(void *lb, void *module, void *context, uint32_t *level, uint32_t *index) {
  picker *self = module;
  size_t levels = envoy_dynamic_module_callback_lb_get_priority_set_size(lb);
  bool found = false;
  for (uint32_t at = 0; at < levels && at < LEVELS && !found; at++) {
    found = pick(self, lb, context, at, index);
    *level = at;
  }
  return found;
}
