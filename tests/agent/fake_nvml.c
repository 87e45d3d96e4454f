/* A small libnvidia-ml.so.1 for the tests of the node agent: the ABI of nvml.h, the GPUs of a text file.
 *
 * FAKE_NVML names the file. It is read again at every call, so a test can lose a GPU or make an event while the agent
 * runs. One word a line says what, the rest is its values; `#` begins a comment:
 *
 *   gpus N                     how many GPUs there are (default 1)
 *   product h100|a100|l4       what they are (default h100)
 *   mig N                      every GPU is cut into N instances of 1g
 *   mode N                     compute mode; 3 is EXCLUSIVE_PROCESS
 *   dram PERCENT               GPM's DRAM bandwidth utilisation, `nan` included
 *   process GPU PID BYTES [mps]   a compute process, a client of MPS or not; BYTES may be `unknown`
 *   fail CALL CODE [GPU]       CALL (without the prefix nvml) returns CODE, on one GPU or on all
 *   slow CALL MILLISECONDS [GPU]  CALL takes so long
 *   event NUMBER GPU TYPE DATA    one event; each NUMBER is handed out once
 *   held BITS                  clocks event reasons
 *
 * OLD_DRIVER leaves out what drivers before Hopper's do not have.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int ret_t;
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10, VERSION = 25 };

enum { MOST_GPUS = 16, MOST_RULES = 64, MOST_INSTANCES = 7 };
#define GIB (1024ull * 1024 * 1024)

/* A handle of a GPU or, with instance >= 0, of a MIG device. */
typedef struct { int index; int instance; } device_s;
typedef device_s *device_t;
static device_s the_gpus[MOST_GPUS];
static device_s the_instances[MOST_GPUS][MOST_INSTANCES];

typedef struct { char call[64]; long value; int gpu; int slow; } rule_t;
typedef struct { int gpu; unsigned pid; unsigned long long bytes; int mps; } process_t;
typedef struct { int number; int gpu; unsigned long long type, data; } event_t;

typedef struct {
    int gpus, mig, mode;
    char product[16];
    double dram;
    unsigned long long held;
    int rules, processes, events;
    rule_t rule[MOST_RULES];
    process_t process[MOST_RULES];
    event_t event[MOST_RULES];
} world_t;

static void look(world_t *world) {
    memset(world, 0, sizeof *world);
    world->gpus = 1;
    world->dram = 50.0;
    strcpy(world->product, "h100");
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        char what[32] = "", call[64] = "", extra[32] = "";
        long value = 0;
        int gpu = -1, number = 0;
        unsigned pid = 0;
        unsigned long long a = 0, b = 0;
        if (sscanf(line, "%31s", what) != 1 || what[0] == '#') continue;
        if (!strcmp(what, "gpus")) sscanf(line, "%*s %d", &world->gpus);
        else if (!strcmp(what, "product")) sscanf(line, "%*s %15s", world->product);
        else if (!strcmp(what, "mig")) sscanf(line, "%*s %d", &world->mig);
        else if (!strcmp(what, "mode")) sscanf(line, "%*s %d", &world->mode);
        else if (!strcmp(what, "dram")) sscanf(line, "%*s %lf", &world->dram);
        else if (!strcmp(what, "held")) sscanf(line, "%*s %llu", &world->held);
        else if ((!strcmp(what, "fail") || !strcmp(what, "slow")) && world->rules < MOST_RULES) {
            sscanf(line, "%*s %63s %ld %d", call, &value, &gpu);
            rule_t *rule = &world->rule[world->rules++];
            strcpy(rule->call, call);
            rule->value = value;
            rule->gpu = gpu;
            rule->slow = what[0] == 's';
        } else if (!strcmp(what, "process") && world->processes < MOST_RULES) {
            char bytes[32] = "";
            sscanf(line, "%*s %d %u %31s %31s", &gpu, &pid, bytes, extra);
            process_t *process = &world->process[world->processes++];
            process->gpu = gpu;
            process->pid = pid;
            process->bytes = strcmp(bytes, "unknown") ? strtoull(bytes, NULL, 10) : ~0ull;
            process->mps = !strcmp(extra, "mps");
        } else if (!strcmp(what, "event") && world->events < MOST_RULES) {
            sscanf(line, "%*s %d %d %llu %llu", &number, &gpu, &a, &b);
            world->event[world->events++] = (event_t){number, gpu, a, b};
        }
    }
    if (file) fclose(file);
    if (world->gpus > MOST_GPUS) world->gpus = MOST_GPUS;
    if (world->mig > MOST_INSTANCES) world->mig = MOST_INSTANCES;
}

static ret_t enter(const char *call, int gpu, world_t *world) {
    look(world);
    ret_t result = OK;
    for (int i = 0; i < world->rules; i++) {
        rule_t *rule = &world->rule[i];
        if (strcmp(rule->call, call) || (rule->gpu >= 0 && rule->gpu != gpu)) continue;
        if (rule->slow) {
            struct timespec wait = {rule->value / 1000, (rule->value % 1000) * 1000000L};
            nanosleep(&wait, NULL);
        } else {
            result = (ret_t)rule->value;
        }
    }
    return result;
}

#define ENTER(call, gpu) world_t world; ret_t entered = enter(call, gpu, &world); if (entered != OK) return entered
static int is_h100(const world_t *world) { return !strcmp(world->product, "h100"); }

/* ---- the library as a whole ---- */

ret_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER("Init", -1);
    for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
        the_gpus[gpu] = (device_s){gpu, -1};
        for (int i = 0; i < MOST_INSTANCES; i++) the_instances[gpu][i] = (device_s){gpu, i};
    }
    return OK;
}
ret_t nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(ret_t code) { (void)code; return "of the fake"; }

static ret_t put(char *to, unsigned length, const char *text) {
    if (strlen(text) + 1 > length) return TOO_SMALL;
    strcpy(to, text);
    return OK;
}
ret_t nvmlSystemGetDriverVersion(char *text, unsigned length) {
    ENTER("SystemGetDriverVersion", -1);
    return put(text, length, "580.95.05");
}
ret_t nvmlSystemGetNVMLVersion(char *text, unsigned length) {
    ENTER("SystemGetNVMLVersion", -1);
    return put(text, length, "13.580.95.05");
}
ret_t nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER("DeviceGetCount", -1);
    *count = (unsigned)world.gpus;
    return OK;
}

/* ---- a device ---- */

ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    ENTER("DeviceGetHandleByIndex", (int)index);
    if ((int)index >= world.gpus) return INVALID;
    *device = &the_gpus[index];
    return OK;
}
ret_t nvmlDeviceGetUUID(device_t device, char *text, unsigned length) {
    ENTER("DeviceGetUUID", device->index);
    char uuid[80];
    if (device->instance >= 0)
        snprintf(uuid, sizeof uuid, "MIG-0000000%d-0000-0000-0000-00000000000%d", device->index, device->instance);
    else
        snprintf(uuid, sizeof uuid, "GPU-0000000%d-0000-0000-0000-000000000000", device->index);
    return put(text, length, uuid);
}
ret_t nvmlDeviceGetName(device_t device, char *text, unsigned length) {
    ENTER("DeviceGetName", device->index);
    const char *name = is_h100(&world) ? "NVIDIA H100 80GB HBM3"
                       : !strcmp(world.product, "a100") ? "NVIDIA A100-SXM4-80GB" : "NVIDIA L4";
    char all[96];
    snprintf(all, sizeof all, "%s%s", name, device->instance >= 0 ? " MIG 1g.10gb" : "");
    return put(text, length, all);
}
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;
ret_t nvmlDeviceGetPciInfo_v3(device_t device, pci_t *pci) {
    ENTER("DeviceGetPciInfo", device->index);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", device->index + 1);
    return OK;
}
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_t;
ret_t nvmlDeviceGetMemoryInfo_v2(device_t device, memory_t *memory) {
    ENTER("DeviceGetMemoryInfo", device->index);
    if (memory->version != (sizeof(memory_t) | 2u << 24)) return VERSION;
    memory->total = device->instance >= 0 ? 10 * GIB : 80 * GIB;
    memory->reserved = GIB / 2;
    memory->used = device->instance >= 0 ? 3 * GIB : 0;
    for (int i = 0; i < world.processes && device->instance < 0; i++)
        if (world.process[i].gpu == device->index && ~world.process[i].bytes) memory->used += world.process[i].bytes;
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}
typedef struct { unsigned gpu, memory; } busy_t;
ret_t nvmlDeviceGetUtilizationRates(device_t device, busy_t *busy) {
    ENTER("DeviceGetUtilizationRates", device->index);
    if (world.mig) return UNSUPPORTED;
    *busy = (busy_t){97, 42};
    return OK;
}
#define NUMBER(name, type, value) \
    ret_t nvmlDeviceGet##name(device_t device, type *result) { \
        ENTER("DeviceGet" #name, device->index); \
        *result = value; \
        return OK; \
    }
NUMBER(TotalEnergyConsumption, unsigned long long, 1234500ull)
NUMBER(PowerUsage, unsigned, 350250u)
NUMBER(EnforcedPowerLimit, unsigned, 700000u)
NUMBER(ComputeMode, unsigned, (unsigned)world.mode)
NUMBER(CurrentClocksThrottleReasons, unsigned long long, world.held)
NUMBER(SupportedEventTypes, unsigned long long, 0xbull)
NUMBER(MaxMigDeviceCount, unsigned, strcmp(world.product, "l4") ? MOST_INSTANCES : 0)
ret_t nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *celsius) {
    ENTER("DeviceGetTemperature", device->index);
    if (sensor != 0) return INVALID;
    *celsius = 61;
    return OK;
}
ret_t nvmlDeviceGetClockInfo(device_t device, unsigned which, unsigned *mhz) {
    ENTER("DeviceGetClockInfo", device->index);
    *mhz = which == 2 ? 2619 : 1755;
    return OK;
}
ret_t nvmlDeviceGetMaxClockInfo(device_t device, unsigned which, unsigned *mhz) {
    ENTER("DeviceGetMaxClockInfo", device->index);
    *mhz = which == 2 ? 2619 : 1980;
    return OK;
}
ret_t nvmlDeviceGetTotalEccErrors(device_t device, unsigned kind, unsigned counter, unsigned long long *count) {
    ENTER(kind ? "DeviceGetTotalEccErrorsUncorrected" : "DeviceGetTotalEccErrorsCorrected", device->index);
    if (counter != 0) return INVALID;
    *count = kind ? 1 : 17;
    return OK;
}

/* ---- MIG ---- */

ret_t nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    ENTER("DeviceGetMigMode", device->index);
    if (!strcmp(world.product, "l4")) return UNSUPPORTED;
    *current = *pending = world.mig > 0;
    return OK;
}
ret_t nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *instance) {
    ENTER("DeviceGetMigDeviceHandleByIndex", device->index);
    /* There is a gap at 0, as after an instance was destroyed. */
    if (index == 0 || (int)index > world.mig) return NOT_FOUND;
    *instance = &the_instances[device->index][index - 1];
    return OK;
}
NUMBER(GpuInstanceId, unsigned, (unsigned)device->instance + 7)
NUMBER(ComputeInstanceId, unsigned, 0u)
typedef struct { unsigned multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
                 unsigned long long memory_mb; } attributes_t;
ret_t nvmlDeviceGetAttributes_v2(device_t device, attributes_t *attributes) {
    ENTER("DeviceGetAttributes", device->index);
    memset(attributes, 0, sizeof *attributes);
    attributes->multiprocessors = 16;
    attributes->gpu_slices = attributes->compute_slices = 1;
    attributes->memory_mb = 9856;
    return OK;
}

/* ---- processes ---- */

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } info_t;
static ret_t list(world_t *world, int gpu, int clients_only, unsigned *count, info_t *infos) {
    unsigned room = *count, found = 0;
    for (int i = 0; i < world->processes; i++) {
        process_t *process = &world->process[i];
        if (process->gpu != gpu || (clients_only && !process->mps)) continue;
        if (found < room && infos)
            infos[found] = (info_t){process->pid, process->bytes, ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}
ret_t nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, info_t *infos) {
    ENTER("DeviceGetComputeRunningProcesses", device->index);
    return list(&world, device->index, 0, count, infos);
}
ret_t nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t device, unsigned *count, info_t *infos) {
    ENTER("DeviceGetMPSComputeRunningProcesses", device->index);
    return list(&world, device->index, 1, count, infos);
}

/* ---- events ---- */

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static int handed_out[1024];
static unsigned long long registered[MOST_GPUS];
typedef struct { device_t device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } data_t;

ret_t nvmlEventSetCreate(void **set) {
    ENTER("EventSetCreate", -1);
    *set = handed_out;
    return OK;
}
ret_t nvmlEventSetFree(void *set) { (void)set; return OK; }
ret_t nvmlDeviceRegisterEvents(device_t device, unsigned long long types, void *set) {
    ENTER("DeviceRegisterEvents", device->index);
    (void)set;
    registered[device->index] = types;
    return OK;
}
ret_t nvmlEventSetWait_v2(void *set, data_t *data, unsigned milliseconds) {
    (void)set;
    for (unsigned waited = 0; ; waited += 10) {
        ENTER("EventSetWait", -1);
        for (int i = 0; i < world.events; i++) {
            event_t *event = &world.event[i];
            pthread_mutex_lock(&events_lock);
            int fresh = event->number < 1024 && !handed_out[event->number] && (registered[event->gpu] & event->type);
            if (fresh) handed_out[event->number] = 1;
            pthread_mutex_unlock(&events_lock);
            if (!fresh) continue;
            *data = (data_t){&the_gpus[event->gpu], event->type, event->data, ~0u, ~0u};
            return OK;
        }
        if (waited >= milliseconds) return TIMED_OUT;
        nanosleep(&(struct timespec){0, 10000000L}, NULL);
    }
}

/* ---- GPM ---- */

#ifndef OLD_DRIVER
typedef struct { unsigned version, supported; } support_t;
typedef struct { int taken; int gpu; int instance; } sample_t;
typedef struct { unsigned id; ret_t result; double value; struct { char *name, *full, *unit; } info; } metric_t;
typedef struct { unsigned version, count; sample_t *first, *second; metric_t metrics[]; } metrics_t;
static int ticks;

ret_t nvmlGpmQueryDeviceSupport(device_t device, support_t *support) {
    ENTER("GpmQueryDeviceSupport", device->index);
    if (support->version != 1) return VERSION;
    support->supported = is_h100(&world);
    return OK;
}
ret_t nvmlGpmSampleAlloc(sample_t **sample) {
    ENTER("GpmSampleAlloc", -1);
    *sample = calloc(1, sizeof **sample);
    return OK;
}
ret_t nvmlGpmSampleFree(sample_t *sample) { free(sample); return OK; }
static ret_t take(device_t device, int instance, sample_t *sample) {
    *sample = (sample_t){__sync_add_and_fetch(&ticks, 1), device->index, instance};
    return OK;
}
ret_t nvmlGpmSampleGet(device_t device, sample_t *sample) {
    ENTER("GpmSampleGet", device->index);
    return is_h100(&world) ? take(device, -1, sample) : UNSUPPORTED;
}
ret_t nvmlGpmMigSampleGet(device_t device, unsigned instance, sample_t *sample) {
    ENTER("GpmMigSampleGet", device->index);
    return is_h100(&world) ? take(device, (int)instance, sample) : UNSUPPORTED;
}
ret_t nvmlGpmMetricsGet(metrics_t *asked) {
    ENTER("GpmMetricsGet", asked->first ? asked->first->gpu : -1);
    if (asked->version != 1) return VERSION;
    if (!asked->first || !asked->second || asked->first->taken >= asked->second->taken || !asked->first->taken
        || asked->first->gpu != asked->second->gpu || asked->first->instance != asked->second->instance)
        return INVALID;
    for (unsigned i = 0; i < asked->count; i++) {
        metric_t *metric = &asked->metrics[i];
        metric->result = OK;
        switch (metric->id) {
            case 1: metric->value = 99.0; break;
            case 2: metric->value = 80.0; break;
            case 3: metric->value = 25.0; break;
            case 5: metric->value = 12.5; break;
            /* An instance is told in its own share: twice what the whole GPU shows, here. */
            case 10: metric->value = asked->first->instance >= 0 ? 2 * world.dram : world.dram; break;
            case 20: metric->value = 3.0; break;
            default: metric->result = UNSUPPORTED;
        }
    }
    return OK;
}
#endif
