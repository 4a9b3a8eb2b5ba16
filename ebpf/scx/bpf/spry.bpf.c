// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Shortest remaining time first, for the processes that spryd puts into SCHED_EXT; all others stay where they are.
 *
 * spryd writes a *standing* for each process into a slot: a rank (the smallest goes first) and by how much it falls for each
 * nanosecond of CPU. With rank = predicted time and fall = 1 that is SRPT. All threads and children of a process share
 * its slot: forking makes nobody young again. Who has had more than was predicted counts as needing as much again.
 *
 *   LIFE      who hasn't run for LIFE_NS: a turn of LIFE_SLICE_NS, before everybody. Keeps the kernel's watchdog quiet.
 *   OVERDUE   who has waited longer than promised (below), by due date: OVERDUE_NS in each CYCLE_NS on each CPU
 *   MAIN      everybody else, by rank
 *   SPENT     who has used up his quota of this period, by the time of his release. cpu.max doesn't reach SCHED_EXT.
 *
 * The promise: a call is due STRETCH times its rank after it became ready (at least DUE_NS_MIN, at most DUE_NS_MAX). From then
 * on OVERDUE_NS / CYCLE_NS of every CPU that it may use serve the calls that are due earlier and then it, whatever else
 * arrives. So a call that is due at D, with s of its own work left and V of those due before it, is over at
 * D + (V + s) * CYCLE_NS / OVERDUE_NS + SCAN_NS + 2 * CYCLE_NS at the latest (one CPU; no fair task in between: SCHED_EXT
 * is below them; no quota of its own).
 *
 * A task that is about to be put back isn't in a queue yet when the next one is chosen: it is compared with the queue's
 * head, else a nearly finished one would lose its turn. Equal ranks take turns, a slice each.
 */
#include "kernel.h"

char dual_license[] SEC("license") = "Dual MIT/GPL";

enum { SLOTS = 4096, CPUS = 1024 };
enum dsq { MAIN = 1, OVERDUE = 2, SPENT = 3, LIFE = 4 };

#define MS 1000000ULL
#define SLICE_NS (4 * MS)
#define SLICE_NS_MIN (MS / 10)
#define PERIOD_NS (100 * MS)
#define CYCLE_NS (200 * MS)
#define OVERDUE_NS (20 * MS)
#define SCAN_NS (20 * MS)
#define STRETCH 20
#define DUE_NS_MIN (1000 * MS)
#define DUE_NS_MAX (60000 * MS)
#define LIFE_NS (5000 * MS)
#define LIFE_SLICE_NS (1 * MS)
/* The longest that the kernel allows. */
#define WATCHDOG_MS 30000
/* Of who is in SCHED_EXT without a slot. */
#define RANK_UNKNOWN (50 * MS)
#define NEVER (~0ULL)

/* What spryd says of a process. SYNC(standing): `epoch` is written last; an old rank under a new epoch can't be seen for long. */
struct standing {
	u64 epoch;
	u64 rank;
	/* Goes up with every call: its due date is reckoned anew. */
	u32 call;
	u32 fall;
	/* CPU time in each PERIOD_NS; 0: no limit. */
	u64 quota_ns;
	u64 flags;
	/* Goes up with every process that is given the slot: it has nothing to pay back of what the one before took too much. */
	u64 claim;
	u64 reserved[2];
};

/* In `flags`. Nobody says when this process's calls begin: one begins whenever it has slept. */
#define UNORDERED 1ULL

/* What the kernel knows of it. */
struct account {
	u64 epoch;
	u64 used_ns;
	u64 due_ns;
	u64 period;
	u64 period_used_ns;
	u64 cpu_ns;
	u32 call;
	u32 reserved;
	u64 claim;
};

/* Of one CPU. */
struct cpu {
	/* The slot of the task that runs, plus one; 0: none of ours. */
	u32 slot;
	u32 overdue;
	u64 since_ns;
	u64 cycle_ns;
	u64 overdue_used_ns;
};

/* For whoever wants to know how it goes. Reasons and messages end with a zero byte. */
struct health {
	u32 version;
	/* 0: not yet; 1: scheduling; 2: over. */
	u32 state;
	u32 exit_kind;
	u32 reserved;
	s64 exit_code;
	u64 heartbeat_ns;
	u64 enqueued;
	u64 preempted;
	u64 overdue;
	u64 spent;
	u64 revived;
	u64 kept;
	char reason[128];
	char message[256];
};

struct mark {
	u32 slot;
};

/* Of a task, by nobody but us. */
struct local {
	u64 ran_ns;
	u32 overdue;
	u32 reserved;
};

struct alarm {
	struct bpf_timer timer;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, SLOTS);
	__uint(map_flags, MAP_MMAPABLE);
	__type(key, u32);
	__type(value, struct standing);
} spry_standings SEC(".maps");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, SLOTS);
	__uint(map_flags, MAP_MMAPABLE);
	__type(key, u32);
	__type(value, struct account);
} spry_accounts SEC(".maps");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, MAP_MMAPABLE);
	__type(key, u32);
	__type(value, struct health);
} spry_health SEC(".maps");

/* Which slot a process has. Keyed by a pidfd from outside: it can't be another process's. */
struct {
	__uint(type, MAP_TASK_STORAGE);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} spry_marks SEC(".maps");

struct {
	__uint(type, MAP_TASK_STORAGE);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, int);
	__type(value, struct local);
} locals SEC(".maps");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, CPUS);
	__type(key, u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct alarm);
} alarms SEC(".maps");

static u64 next_scan_ns;

static inline struct health *health(void)
{
	u32 zero = 0;
	return map_lookup(&spry_health, &zero);
}

#define count(what) do { struct health *h = health(); if (h) __sync_fetch_and_add(&h->what, 1); } while (0)

static inline struct cpu *cpu_of(u32 number)
{
	return map_lookup(&cpus, &number);
}

/* The slot of a task plus one; 0: it has none. */
static inline u32 slot_of(struct task_struct *p)
{
	struct mark *mark = storage_get(&spry_marks, p, 0, 0);
	return mark && mark->slot < SLOTS ? mark->slot + 1 : 0;
}

/* The rank of a slot after `more` nanoseconds that aren't accounted for yet. */
static inline u64 rank_of(u32 slot, u64 more)
{
	u32 index = slot - 1;
	if (!slot)
		return RANK_UNKNOWN;
	struct standing *standing = map_lookup(&spry_standings, &index);
	struct account *account = map_lookup(&spry_accounts, &index);
	if (!standing || !account)
		return RANK_UNKNOWN;
	if (account->epoch != standing->epoch) {
		account->epoch = standing->epoch;
		account->used_ns = 0;
		more = 0;
	}
	u64 rank = standing->rank;
	u64 fallen = (account->used_ns + more) * standing->fall;
	if (!standing->fall)
		return rank;
	return fallen < rank ? rank - fallen : fallen;
}

/* The quota of this period that is left; NEVER: no limit. What was taken too much is paid back in the next periods. */
static inline u64 quota_left(u32 slot, u64 now)
{
	u32 index = slot - 1;
	if (!slot)
		return NEVER;
	struct standing *standing = map_lookup(&spry_standings, &index);
	struct account *account = map_lookup(&spry_accounts, &index);
	if (!standing || !account || !standing->quota_ns)
		return NEVER;
	u64 period = now / PERIOD_NS;
	u64 quota = standing->quota_ns;
	if (account->claim != standing->claim) {
		account->claim = standing->claim;
		account->period_used_ns = 0;
	}
	if (account->period != period) {
		u64 periods = period - account->period;
		u64 used = account->period_used_ns;
		account->period = period;
		account->period_used_ns = periods < 1000 && used > periods * quota ? used - periods * quota : 0;
	}
	u64 used = account->period_used_ns;
	return used < quota ? quota - used : 0;
}

static inline u64 slice_of(u64 left)
{
	if (left > SLICE_NS)
		return SLICE_NS;
	return left < SLICE_NS_MIN ? SLICE_NS_MIN : left;
}

/* When the call that a slot serves is due. */
static inline u64 due_of(u32 slot, u64 rank, u64 now)
{
	u32 index = slot - 1;
	if (!slot)
		return NEVER;
	struct standing *standing = map_lookup(&spry_standings, &index);
	struct account *account = map_lookup(&spry_accounts, &index);
	if (!standing || !account)
		return NEVER;
	if (!account->due_ns || account->call != standing->call) {
		u64 wait = rank < DUE_NS_MAX / STRETCH ? rank * STRETCH : DUE_NS_MAX;
		account->call = standing->call;
		account->due_ns = now + (wait < DUE_NS_MIN ? DUE_NS_MIN : wait);
	}
	return account->due_ns;
}

/* It sleeps. Of a process whose calls nobody tells of that is the end of one: it isn't late for the next. */
static inline void rest(u32 slot)
{
	u32 index = slot - 1;
	if (!slot)
		return;
	struct standing *standing = map_lookup(&spry_standings, &index);
	struct account *account = map_lookup(&spry_accounts, &index);
	if (standing && account && standing->flags & UNORDERED)
		account->due_ns = 0;
}

/* The CPU time since it was last asked goes to the slot that had it. */
static inline void charge(u32 slot, struct cpu *cpu, u64 now)
{
	u64 ran = now > cpu->since_ns ? now - cpu->since_ns : 0;
	u32 index = slot - 1;
	cpu->since_ns = now;
	if (cpu->overdue)
		cpu->overdue_used_ns += ran;
	struct account *account = slot ? map_lookup(&spry_accounts, &index) : 0;
	if (!account)
		return;
	rank_of(slot, 0);
	quota_left(slot, now);
	__sync_fetch_and_add(&account->used_ns, ran);
	__sync_fetch_and_add(&account->period_used_ns, ran);
	__sync_fetch_and_add(&account->cpu_ns, ran);
}

/* A CPU for whoever has just been queued: an idle one, or the one whose task has the largest rank if that is larger. */
static inline void find_cpu(struct task_struct *p, u64 rank, u64 now)
{
	if (scx_bpf_pick_idle_cpu) {
		s32 idle = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
		if (idle >= 0) {
			scx_bpf_kick_cpu(idle, KICK_IDLE);
			return;
		}
	}
	struct bpf_iter_num it;
	s32 victim = -1;
	u64 worst = rank;
	int *number;
	bpf_iter_num_new(&it, 0, scx_bpf_nr_cpu_ids());
	while ((number = bpf_iter_num_next(&it))) {
		u32 index = *number;
		struct cpu *cpu = cpu_of(index);
		if (!cpu || !bpf_cpumask_test_cpu(index, p->cpus_ptr))
			continue;
		if (!cpu->slot && !scx_bpf_pick_idle_cpu)
			scx_bpf_kick_cpu(index, KICK_IDLE);
		if (!cpu->slot || cpu->overdue)
			continue;
		u64 ran = now > cpu->since_ns ? now - cpu->since_ns : 0;
		u64 other = rank_of(cpu->slot, ran);
		if (other > worst) {
			worst = other;
			victim = index;
		}
	}
	bpf_iter_num_destroy(&it);
	if (victim >= 0) {
		count(preempted);
		scx_bpf_kick_cpu(victim, KICK_PREEMPT);
	}
}

/* The next period has begun: idle CPUs look whether somebody is released. */
static int ring(void *map, int *key, struct alarm *alarm)
{
	struct bpf_iter_num it;
	int *number;
	bpf_iter_num_new(&it, 0, scx_bpf_nr_cpu_ids());
	while ((number = bpf_iter_num_next(&it)))
		scx_bpf_kick_cpu(*number, KICK_IDLE);
	bpf_iter_num_destroy(&it);
	if (scx_bpf_dsq_nr_queued(SPENT) > 0)
		timer_start(&alarm->timer, PERIOD_NS - now_ns() % PERIOD_NS + SLICE_NS_MIN, 0);
	return 0;
}

static inline void set_alarm(u64 now)
{
	u32 zero = 0;
	struct alarm *alarm = map_lookup(&alarms, &zero);
	if (alarm)
		timer_start(&alarm->timer, PERIOD_NS - now % PERIOD_NS + SLICE_NS_MIN, 0);
}

SEC("struct_ops/spry_select_cpu")
s32 spry_select_cpu(u64 *context)
{
	struct task_struct *p = (void *)context[0];
	bool idle = 0;
	s32 cpu = (s32)context[1];
	if (scx_bpf_select_cpu_dfl)
		cpu = scx_bpf_select_cpu_dfl(p, cpu, context[2], &idle);
	if (!idle || scx_bpf_dsq_nr_queued(MAIN) > 0)
		return cpu;
	u64 now = now_ns();
	u32 slot = slot_of(p);
	u64 left = quota_left(slot, now);
	if (left) {
		count(enqueued);
		due_of(slot, rank_of(slot, 0), now);
		insert(p, DSQ_LOCAL, slice_of(left));
	}
	return cpu;
}

SEC("struct_ops/spry_enqueue")
void spry_enqueue(u64 *context)
{
	struct task_struct *p = (void *)context[0];
	u64 now = now_ns();
	u32 slot = slot_of(p);
	u64 left = quota_left(slot, now);
	u64 rank = rank_of(slot, 0);
	due_of(slot, rank, now);
	count(enqueued);
	if (!left) {
		count(spent);
		insert_ordered(p, SPENT, SLICE_NS, now);
		set_alarm(now);
		return;
	}
	insert_ordered(p, MAIN, slice_of(left), rank);
	find_cpu(p, rank, now);
}

/* Who has waited too long goes to a queue of its own. Walks from the end, where they are; bounded by the queue. */
static inline void promote(u64 from, u64 now)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	if (bpf_iter_scx_dsq_new(&it, from, DSQ_ITER_REV) == 0) {
		while ((p = bpf_iter_scx_dsq_next(&it))) {
			struct local *local = storage_get(&locals, p, 0, STORAGE_CREATE);
			u32 slot = slot_of(p);
			if (!local)
				continue;
			if (!local->ran_ns)
				local->ran_ns = now;
			/* (Whoever stops on another CPU may have done so since `now`.) */
			if (now > local->ran_ns && now - local->ran_ns > LIFE_NS) {
				count(revived);
				move_ordered(&it, p, LIFE, LIFE_SLICE_NS, local->ran_ns);
				continue;
			}
			if (from == SPENT) {
				u64 left = quota_left(slot, now);
				if (left)
					move_ordered(&it, p, MAIN, slice_of(left), rank_of(slot, 0));
				continue;
			}
			u64 due = due_of(slot, 0, now);
			if (due < now) {
				count(overdue);
				local->overdue = 1;
				move_ordered(&it, p, OVERDUE, slice_of(quota_left(slot, now)), due);
			}
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
}

/* The rank of the first in the queue among those that may run here. */
static inline u64 head_rank(u64 queue, s32 cpu)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u64 rank = NEVER;
	if (bpf_iter_scx_dsq_new(&it, queue, 0) == 0) {
		while ((p = bpf_iter_scx_dsq_next(&it))) {
			if (!bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
				continue;
			rank = rank_of(slot_of(p), 0);
			break;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return rank;
}

SEC("struct_ops/spry_dispatch")
void spry_dispatch(u64 *context)
{
	s32 number = (s32)context[0];
	struct task_struct *prev = (void *)context[1];
	struct cpu *cpu = cpu_of(number);
	u64 now = now_ns();
	u64 left = 0, rank = NEVER;
	struct health *h = health();
	if (!cpu)
		return;
	if (h)
		h->heartbeat_ns = now;
	if (now >= next_scan_ns) {
		next_scan_ns = now + SCAN_NS;
		promote(MAIN, now);
	}
	if (scx_bpf_dsq_nr_queued(SPENT) > 0)
		promote(SPENT, now);
	if (prev && prev->scx.flags & TASK_QUEUED) {
		u32 slot = slot_of(prev);
		charge(slot, cpu, now);
		left = quota_left(slot, now);
		rank = rank_of(slot, 0);
	}
	if (now - cpu->cycle_ns >= CYCLE_NS) {
		cpu->cycle_ns = now;
		cpu->overdue_used_ns = 0;
	}
	if (move_to_this_cpu(LIFE))
		return;
	if (cpu->overdue_used_ns < OVERDUE_NS && move_to_this_cpu(OVERDUE))
		return;
	/* Being overdue is no disadvantage: when their share is used up, they go by rank like everybody. */
	u64 first = head_rank(MAIN, number), late = NEVER;
	if (scx_bpf_dsq_nr_queued(OVERDUE) > 0)
		late = head_rank(OVERDUE, number);
	if (left && rank < first && rank <= late) {
		count(kept);
		set_slice(prev, slice_of(left));
		return;
	}
	if (late < first && move_to_this_cpu(OVERDUE))
		return;
	if (move_to_this_cpu(MAIN) || move_to_this_cpu(OVERDUE))
		return;
	if (left && prev)
		set_slice(prev, slice_of(left));
}

/* Not always on the CPU that it is about: whoever puts a running task into SCHED_EXT calls it from his own. */
SEC("struct_ops/spry_running")
void spry_running(u64 *context)
{
	struct task_struct *p = (void *)context[0];
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct local *local = storage_get(&locals, p, 0, STORAGE_CREATE);
	if (!cpu)
		return;
	cpu->since_ns = now_ns();
	cpu->slot = slot_of(p);
	cpu->overdue = local ? local->overdue : 0;
}

SEC("struct_ops/spry_stopping")
void spry_stopping(u64 *context)
{
	struct task_struct *p = (void *)context[0];
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct local *local = storage_get(&locals, p, 0, STORAGE_CREATE);
	u64 now = now_ns();
	if (!cpu)
		return;
	u32 slot = slot_of(p);
	charge(slot, cpu, now);
	cpu->slot = 0;
	cpu->overdue = 0;
	if (local) {
		local->ran_ns = now;
		local->overdue = 0;
	}
	/*
	 * Whoever is put aside for a task of a higher class would wait at the CPU itself and go on before anybody is asked who is
	 * next. Without a slice he is queued like everybody else.
	 */
	if (context[1])
		set_slice(p, 0);
	else
		rest(slot);
}

/* Also called for every task that is there already, and for every fork of the machine: the first look must be cheap. */
SEC("struct_ops.s/spry_init_task")
s32 spry_init_task(u64 *context)
{
	struct task_struct *p = (void *)context[0];
	struct scx_init_task_args *args = (void *)context[1];
	if (!args->fork)
		return 0;
	struct mark *parent = storage_get(&spry_marks, current_task(), 0, 0);
	if (!parent)
		return 0;
	u32 slot = parent->slot;
	struct mark *mark = storage_get(&spry_marks, p, 0, STORAGE_CREATE);
	if (mark)
		mark->slot = slot;
	return 0;
}

SEC("struct_ops/spry_enable")
void spry_enable(u64 *context)
{
	struct local *local = storage_get(&locals, (struct task_struct *)context[0], 0, STORAGE_CREATE);
	if (local)
		local->ran_ns = now_ns();
}

SEC("struct_ops.s/spry_init")
s32 spry_init(u64 *context)
{
	u32 zero = 0;
	struct alarm *alarm = map_lookup(&alarms, &zero);
	struct health *h = health();
	s32 failed = scx_bpf_create_dsq(MAIN, -1);
	failed = failed ?: scx_bpf_create_dsq(OVERDUE, -1);
	failed = failed ?: scx_bpf_create_dsq(SPENT, -1);
	failed = failed ?: scx_bpf_create_dsq(LIFE, -1);
	if (failed || !alarm || !h)
		return failed ?: -12;
	timer_init(&alarm->timer, &alarms, CLOCK_MONOTONIC);
	timer_set_callback(&alarm->timer, ring);
	h->version = 2;
	h->state = 1;
	return 0;
}

SEC("struct_ops/spry_exit")
void spry_exit(u64 *context)
{
	struct scx_exit_info *info = (void *)context[0];
	struct health *h = health();
	if (!h)
		return;
	h->exit_kind = info->kind;
	h->exit_code = info->exit_code;
	read_kernel_str(h->reason, sizeof(h->reason), info->reason);
	read_kernel_str(h->message, sizeof(h->message), info->msg);
	h->state = 2;
}

SEC(".struct_ops.link")
struct sched_ext_ops spry = {
	.select_cpu = (void *)spry_select_cpu,
	.enqueue = (void *)spry_enqueue,
	.dispatch = (void *)spry_dispatch,
	.running = (void *)spry_running,
	.stopping = (void *)spry_stopping,
	.init_task = (void *)spry_init_task,
	.enable = (void *)spry_enable,
	.init = (void *)spry_init,
	.exit = (void *)spry_exit,
	.flags = OPS_SWITCH_PARTIAL | OPS_ENQ_LAST,
	.timeout_ms = WATCHDOG_MS,
	.name = "spry",
};
