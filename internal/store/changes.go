package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// Changes publishes changes of records: to subscribers at once, without history
// ([Changes.Subscribe]), and as a stream with positions ([Changes.ReadChanges]).
type Changes struct{ *core }

// ChangeListener receives changes of records. Its methods must return quickly, and
// are called one at a time.
type ChangeListener interface {
	// Synced is called when every later change will be reported. Records that were
	// read before may be outdated.
	Synced()
	// Invalidate is called when a grant's record has changed or was removed.
	Invalidate(id grant.ID)
	// Desynced is called when changes may be missed until the next Synced, with the
	// cause: [ErrNoReply] if Redis does not respond.
	Desynced(why error)
}

const (
	pingInterval = 500 * time.Millisecond  // between pings
	replyTimeout = 1500 * time.Millisecond // without a reply, after which a subscription is replaced
)

// ErrNoReply means that Redis does not respond.
var ErrNoReply = errors.New("Redis does not respond") //nolint:staticcheck // a name

// Subscribe reports every change of a record, by any replica, until ctx ends.
//
// The scripts that change a record publish its id. A message can only be lost with
// its connection. So while a subscription replies to pings, nothing was missed; one
// that does not reply is replaced. On a cluster there is one subscription to each
// master, for the channels of its shards.
func (s *Changes) Subscribe(ctx context.Context, f ChangeListener) {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 20*time.Millisecond, time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := s.subscribeOnce(ctx, f)
		if ctx.Err() != nil {
			return
		}
		f.Desynced(err)
		if time.Since(began) > 10*time.Second {
			pace.Reset()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace.NextBackOff()):
		}
	}
}

// subscribeOnce subscribes, and returns when a message may have been lost.
func (s *Changes) subscribeOnce(ctx context.Context, f ChangeListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nodes, err := s.subscriptions(ctx)
	if err != nil {
		return err
	}
	all := &mergedListener{ChangeListener: f, waiting: len(nodes)}
	ended := make(chan error, len(nodes))
	var wg sync.WaitGroup
	for _, node := range nodes {
		wg.Go(func() { ended <- s.listen(ctx, node, all) })
	}
	err = <-ended
	cancel()
	wg.Wait()
	return err
}

// mergedListener combines several subscriptions: it is synced when all of them are.
type mergedListener struct {
	ChangeListener

	mu      sync.Mutex
	waiting int
}

func (q *mergedListener) Synced() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting--; q.waiting == 0 {
		q.ChangeListener.Synced()
	}
}

func (q *mergedListener) Invalidate(id grant.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ChangeListener.Invalidate(id)
}

// subscription is a server and its channels.
type subscription struct {
	server   *redis.Client
	channels []string
	sharded  bool
}

// subscriptions returns the masters with the channels of their shards.
func (s *core) subscriptions(ctx context.Context) ([]subscription, error) {
	var channels []string
	for shard := range grant.Shards {
		channels = append(channels, changedKey(shard))
	}
	cluster, ok := s.redis.(*redis.ClusterClient)
	if !ok {
		server, ok := s.redis.(*redis.Client)
		if !ok {
			return nil, fmt.Errorf("a client of type %T cannot subscribe", s.redis)
		}
		return []subscription{{server: server, channels: channels}}, nil
	}
	var nodes []subscription
	index := map[*redis.Client]int{}
	for _, channel := range channels {
		master, err := cluster.MasterForKey(ctx, channel)
		if err != nil {
			return nil, fmt.Errorf("finding the master of %s: %w", channel, err)
		}
		i, known := index[master]
		if !known {
			i = len(nodes)
			index[master] = i
			nodes = append(nodes, subscription{server: master, sharded: true})
		}
		nodes[i].channels = append(nodes[i].channels, channel)
	}
	return nodes, nil
}

// checkReadable returns an error if the server cannot be read through the pool. After
// an outage the pool fails for up to another second, while a subscription works on
// its own connection: listeners would be notified too early to revalidate.
func checkReadable(ctx context.Context, server *redis.Client) error {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	return server.Ping(ctx).Err()
}

// listen receives the messages of one server until one may have been lost.
func (s *Changes) listen(ctx context.Context, node subscription, f *mergedListener) error {
	if err := checkReadable(ctx, node.server); err != nil {
		return fmt.Errorf("subscribing to changes: %w", err)
	}
	var link *redis.PubSub
	var err error
	if node.sharded {
		link = node.server.SSubscribe(ctx)
		for _, channel := range node.channels { // one command may name the channels of one slot only
			err = errors.Join(err, link.SSubscribe(ctx, channel))
		}
	} else {
		link = node.server.Subscribe(ctx)
		err = link.Subscribe(ctx, node.channels...)
	}
	defer func() { _ = link.Close() }()
	if err != nil {
		return fmt.Errorf("subscribing to changes: %w", err)
	}
	lastReply, lastPing, failovers := time.Now(), time.Time{}, int64(-1)
	for confirmed := 0; ctx.Err() == nil; {
		message, err := link.ReceiveTimeout(ctx, pingInterval)
		var timeout interface{ Timeout() bool }
		switch {
		case err == nil:
			lastReply = time.Now()
		case errors.As(err, &timeout) && timeout.Timeout():
		default:
			return fmt.Errorf("subscribing to changes: %w", err)
		}
		switch message := message.(type) {
		case *redis.Message:
			f.Invalidate(grant.ID(message.Payload))
		case *redis.Subscription:
			// A later confirmation means that go-redis has reconnected, or that the
			// channel has moved to another server.
			if confirmed++; confirmed > len(node.channels) || message.Kind == "sunsubscribe" {
				return errors.New("subscribing to changes: the subscription was replaced")
			}
			if confirmed == len(node.channels) {
				failovers = s.failovers.Failovers()
				f.Synced()
			}
		}
		now := time.Now()
		if now.Sub(lastReply) > replyTimeout {
			return fmt.Errorf("subscribing to changes: %w", ErrNoReply)
		}
		if failovers >= 0 && s.failovers.Failovers() != failovers {
			return errors.New("subscribing to changes: Redis restarted or failed over")
		}
		if now.Sub(lastPing) >= pingInterval { // also between messages: the server may have been replaced
			lastPing = now
			if err := link.Ping(ctx); err != nil {
				return fmt.Errorf("subscribing to changes: %w", err)
			}
		}
	}
	return ctx.Err()
}
