/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the scheduler needs to know of the kernel, written by hand in the place of a generated vmlinux.h: the members that it
 * looks at (found by name when the object is loaded), the kernel's functions, and the helpers by number.
 *
 * Structures in the signatures of the kernel's functions are complete: a forward declaration gives a signature that the
 * verifier refuses.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define KFUNC __attribute__((section(".ksyms"))) extern
#define KFUNC_IF_THERE __attribute__((section(".ksyms"), weak)) extern
#define __uint(name, value) int (*name)[value]
#define __type(name, value) typeof(value) *name
#define inline inline __attribute__((always_inline))

enum map_type { MAP_ARRAY = 2, MAP_TASK_STORAGE = 29 };
enum map_flags { MAP_NO_PREALLOC = 1, MAP_MMAPABLE = 1024 };
enum storage_flags { STORAGE_CREATE = 1 };
enum { CLOCK_MONOTONIC = 1 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct cpumask {
	unsigned long bits[128];
} cpumask_t;

struct sched_ext_entity {
	u32 flags;
	u64 slice;
	u64 dsq_vtime;
};

struct task_struct {
	int pid;
	struct sched_ext_entity scx;
	const cpumask_t *cpus_ptr;
};

struct scx_init_task_args {
	bool fork;
};

enum scx_exit_kind { SCX_EXIT_NONE };

struct scx_exit_info {
	enum scx_exit_kind kind;
	s64 exit_code;
	const char *reason;
	char *msg;
};

#pragma clang attribute pop

/* The operations that are used; the kernel's structure has more. */
struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	void (*dispatch)(s32 cpu, struct task_struct *prev);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*enable)(struct task_struct *p);
	s32 (*init)(void);
	void (*exit)(struct scx_exit_info *info);
	u64 flags;
	u32 timeout_ms;
	char name[128];
};

enum ops_flags { OPS_ENQ_LAST = 1 << 1, OPS_SWITCH_PARTIAL = 1 << 3 };
enum kick_flags { KICK_IDLE = 1 << 0, KICK_PREEMPT = 1 << 1 };
enum task_flags { TASK_QUEUED = 1 << 0 };
#define DSQ_LOCAL ((1ULL << 63) | 2)
#define DSQ_ITER_REV (1ULL << 16)

struct bpf_timer {
	u64 opaque[2];
} __attribute__((aligned(8)));

struct bpf_iter_num {
	u64 opaque[1];
} __attribute__((aligned(8)));

struct bpf_iter_scx_dsq {
	u64 opaque[6];
} __attribute__((aligned(8)));

KFUNC s32 scx_bpf_dsq_nr_queued(u64 dsq);
KFUNC u32 scx_bpf_nr_cpu_ids(void);
KFUNC s32 scx_bpf_task_cpu(const struct task_struct *p);
KFUNC struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it);
KFUNC void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it);
KFUNC int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end);
KFUNC int *bpf_iter_num_next(struct bpf_iter_num *it);
KFUNC void bpf_iter_num_destroy(struct bpf_iter_num *it);
KFUNC bool bpf_cpumask_test_cpu(u32 cpu, const cpumask_t *mask);

KFUNC s32 scx_bpf_create_dsq(u64 dsq, s32 node);
KFUNC void scx_bpf_kick_cpu(s32 cpu, u64 flags);
KFUNC int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, u64 dsq, u64 flags);

/* Some builds of 7.2 describe these wrongly; it goes without them, too. */
KFUNC_IF_THERE s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags, bool *is_idle);
KFUNC_IF_THERE s32 scx_bpf_pick_idle_cpu(const cpumask_t *allowed, u64 flags);

/* Linux 6.13 gave these new names, 6.18 took the old ones away. */
KFUNC_IF_THERE void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq, u64 slice, u64 flags);
KFUNC_IF_THERE void scx_bpf_dispatch(struct task_struct *p, u64 dsq, u64 slice, u64 flags);
KFUNC_IF_THERE void scx_bpf_dsq_insert_vtime(struct task_struct *p, u64 dsq, u64 slice, u64 vtime, u64 flags);
KFUNC_IF_THERE void scx_bpf_dispatch_vtime(struct task_struct *p, u64 dsq, u64 slice, u64 vtime, u64 flags);
KFUNC_IF_THERE bool scx_bpf_dsq_move_to_local(u64 dsq);
KFUNC_IF_THERE bool scx_bpf_consume(u64 dsq);
KFUNC_IF_THERE void scx_bpf_dsq_move_set_slice(struct bpf_iter_scx_dsq *it, u64 slice);
KFUNC_IF_THERE void scx_bpf_dispatch_from_dsq_set_slice(struct bpf_iter_scx_dsq *it, u64 slice);
KFUNC_IF_THERE void scx_bpf_dsq_move_set_vtime(struct bpf_iter_scx_dsq *it, u64 vtime);
KFUNC_IF_THERE void scx_bpf_dispatch_from_dsq_set_vtime(struct bpf_iter_scx_dsq *it, u64 vtime);
KFUNC_IF_THERE bool scx_bpf_dsq_move_vtime(struct bpf_iter_scx_dsq *it, struct task_struct *p, u64 dsq, u64 flags);
KFUNC_IF_THERE bool scx_bpf_dispatch_vtime_from_dsq(struct bpf_iter_scx_dsq *it, struct task_struct *p, u64 dsq,
						    u64 flags);
/* In the place of a store to the task, from 7.0 on. */
KFUNC_IF_THERE bool scx_bpf_task_set_slice(struct task_struct *p, u64 slice);

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static u64 (*now_ns)(void) = (void *)5;
static long (*read_kernel_str)(void *dst, u32 size, const void *src) = (void *)115;
static void *(*storage_get)(void *map, struct task_struct *p, void *value, u64 flags) = (void *)156;
static struct task_struct *(*current_task)(void) = (void *)158;
static long (*timer_init)(struct bpf_timer *timer, void *map, u64 clock) = (void *)169;
static long (*timer_set_callback)(struct bpf_timer *timer, void *callback) = (void *)170;
static long (*timer_start)(struct bpf_timer *timer, u64 after_ns, u64 flags) = (void *)171;

static inline void insert(struct task_struct *p, u64 dsq, u64 slice)
{
	if (scx_bpf_dsq_insert)
		scx_bpf_dsq_insert(p, dsq, slice, 0);
	else
		scx_bpf_dispatch(p, dsq, slice, 0);
}

static inline void insert_ordered(struct task_struct *p, u64 dsq, u64 slice, u64 key)
{
	if (scx_bpf_dsq_insert_vtime)
		scx_bpf_dsq_insert_vtime(p, dsq, slice, key, 0);
	else
		scx_bpf_dispatch_vtime(p, dsq, slice, key, 0);
}

static inline bool move_to_this_cpu(u64 dsq)
{
	if (scx_bpf_dsq_move_to_local)
		return scx_bpf_dsq_move_to_local(dsq);
	return scx_bpf_consume(dsq);
}

/* Moves the task at which the walk stands to another queue. */
static inline bool move_ordered(struct bpf_iter_scx_dsq *it, struct task_struct *p, u64 dsq, u64 slice, u64 key)
{
	if (scx_bpf_dsq_move_vtime) {
		scx_bpf_dsq_move_set_slice(it, slice);
		scx_bpf_dsq_move_set_vtime(it, key);
		return scx_bpf_dsq_move_vtime(it, p, dsq, 0);
	}
	scx_bpf_dispatch_from_dsq_set_slice(it, slice);
	scx_bpf_dispatch_from_dsq_set_vtime(it, key);
	return scx_bpf_dispatch_vtime_from_dsq(it, p, dsq, 0);
}

static inline void set_slice(struct task_struct *p, u64 slice)
{
	if (scx_bpf_task_set_slice)
		scx_bpf_task_set_slice(p, slice);
	else
		p->scx.slice = slice;
}
