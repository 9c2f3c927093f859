package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// silence is for how long nobody has heard of a process that is stuck: they all say
// that they live every 5 s.
const silence = 20 * time.Second

// programs are those that have to run, by the names they give themselves.
var programs = []struct{ name, called, without string }{
	{"tokenserver", "token server", "no token is served or renewed"},
	{"registrar", "registrar", "nobody can be registered"},
}

// processes looks for who runs, and for who does no more, without having ended.
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
		sample, err := c.store.CountByApp(ctx)
		if err != nil {
			return notChecked(redisSilent)
		}
		if len(sample) == 0 {
			return notChecked("none lives, and there are no grants yet")
		}
	}
	live, versions := map[string]int{}, map[string]bool{}
	var silent []string
	for _, p := range all {
		if d := now.Sub(p.Seen); d > silence {
			silent = append(silent, fmt.Sprintf("%s %s for %v", p.Program, p.Name, d.Round(time.Second)))
			continue
		}
		live[p.Program]++
		versions[p.Version] = true
	}
	if len(live) == 0 && c.store.CheckWritable(ctx) != nil {
		return notChecked("Redis takes no writes, so nobody can say that they live")
	}
	var text, missing []string
	for _, program := range programs {
		if live[program.name] == 0 {
			missing = append(missing, "no "+program.called+" lives: "+program.without)
			continue
		}
		text = append(text, count(live[program.name], program.called))
	}
	found := strings.Join(text, ", ")
	if len(versions) == 1 {
		found += ", of one version"
	} else if len(versions) > 1 {
		found += ", of versions " + strings.Join(slices.Sorted(maps.Keys(versions)), " and ")
	}
	if len(missing) > 0 {
		return fault("start it, and see its log for why it ended", "%s", strings.Join(append(missing, text...), "; "))
	}
	if len(silent) > 0 {
		return warning("if it still runs, it is stuck or cut off from Redis: see its log, then delete the pod, never its journal; others have taken over its work. If it was killed, nothing: it is forgotten in an hour",
			"%s; not heard of: %s", found, strings.Join(silent, ", "))
	}
	return ok("%s", found)
}
