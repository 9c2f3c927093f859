package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxHeartbeatAge is the age from which a heartbeat is overdue. A process sends one
// every 5 s.
const maxHeartbeatAge = 20 * time.Second

// programs lists the programs that must run, by the names in their heartbeats.
var programs = []struct{ name, label, impact string }{
	{"tokenserver", "token server", "no token is served or renewed"},
	{"registrar", "registrar", "no user can be registered"},
}

// processes checks the heartbeats: which processes run, and which stopped sending
// heartbeats without a shutdown.
func (c Config) processes(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	all, errAll := c.store.Processes(ctx)
	now, errNow := c.store.Now(ctx)
	if errAll != nil || errNow != nil {
		return notChecked(redisSilent)
	}
	if len(all) == 0 {
		grants, err := c.store.CountByApp(ctx)
		if err != nil {
			return notChecked(redisSilent)
		}
		if len(grants) == 0 {
			return notChecked("no process runs, and there are no grants yet")
		}
	}
	running, versions := map[string]int{}, map[string]bool{}
	var silent []string
	for _, p := range all {
		if age := now.Sub(p.LastHeartbeat); age > maxHeartbeatAge {
			silent = append(silent, fmt.Sprintf("%s %s for %v", p.Program, p.Name, age.Round(time.Second)))
			continue
		}
		running[p.Program]++
		versions[p.Version] = true
	}
	if len(running) == 0 && c.store.CheckWritable(ctx) != nil {
		return notChecked("Redis rejects writes, so no process can record a heartbeat")
	}
	var text, missing []string
	for _, program := range programs {
		if running[program.name] == 0 {
			missing = append(missing, "no "+program.label+" runs: "+program.impact)
			continue
		}
		text = append(text, count(running[program.name], program.label))
	}
	found := strings.Join(text, ", ")
	if len(versions) == 1 {
		found += ", of one version"
	} else if len(versions) > 1 {
		found += ", of versions " + strings.Join(slices.Sorted(maps.Keys(versions)), " and ")
	}
	if len(missing) > 0 {
		return fault("start it, and see its log for the cause of its exit", "%s", strings.Join(append(missing, text...), "; "))
	}
	if len(silent) > 0 {
		return warning("if it still runs, it is stuck or cannot reach Redis: see its log, then delete the pod, but keep its journal; other processes do its work. If it was killed, do nothing: its entry expires in an hour",
			"%s; no heartbeat from %s", found, strings.Join(silent, ", "))
	}
	return ok("%s", found)
}
