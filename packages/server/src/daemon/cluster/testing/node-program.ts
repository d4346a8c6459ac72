/**
 * One daemon's end of a cluster as a process of its own, for tests that kill and stop it. Takes its options as JSON, prints what
 * it is told as lines of JSON, and does what the lines of its input say, see {@link Command}.
 */
import type { Failure } from '@ckpt/core'
import { configureLogging } from '../../log.ts'
import { type Cluster, type ClusterOptions, openCluster } from '../cluster.ts'

export type Command =
  /** Asks the first peer, and prints its answer. `ask`: see `answer`. */
  | { readonly type: 'request'; readonly ask: unknown; readonly limitMs: number }
  | { readonly type: 'post'; readonly body: unknown; readonly count: number }
  | { readonly type: 'close' }

export type Line =
  | { readonly type: 'open'; readonly address: string; readonly pid: number }
  | { readonly type: 'joined'; readonly nodeRank: number; readonly session: number }
  | { readonly type: 'lost'; readonly nodeRank: number; readonly failure: Failure }
  | { readonly type: 'changed'; readonly epoch: number; readonly nodes: readonly number[] }
  | { readonly type: 'posted'; readonly body: unknown }
  | { readonly type: 'asked'; readonly body: unknown }
  | { readonly type: 'answered'; readonly body: unknown; readonly bytes: number }
  | { readonly type: 'rejected'; readonly failure: Failure }
  | { readonly type: 'log'; readonly text: string }

if (import.meta.main) await run(JSON.parse(process.argv[2]!))

async function run({ host, ...options }: ClusterOptions & { host: string }): Promise<void> {
  configureLogging({ format: 'text', level: 'info', write: (text) => print({ type: 'log', text }) })
  const info = { host, version: '1.0.0', ranks: [{ device: 0, kind: 'host', uuid: host }] }
  const cluster = await openCluster(
    options,
    info,
    { kind: 'host' },
    {
      joined: ({ nodeRank, session }) => print({ type: 'joined', nodeRank, session }),
      lost: ({ nodeRank }, failure) => print({ type: 'lost', nodeRank, failure }),
      changed: (epoch, members) =>
        print({ type: 'changed', epoch, nodes: members.map(({ nodeRank }) => nodeRank) }),
      post: (_, { body }) => print({ type: 'posted', body }),
      async request(_, { body, parts }) {
        print({ type: 'asked', body })
        if (body === 'never') await new Promise(() => {})
        return { body, parts }
      },
    },
  )
  print({ type: 'open', address: cluster.address, pid: process.pid })
  for await (const line of console) obey(cluster, JSON.parse(line) as Command)
}

function obey(cluster: Cluster, command: Command): void {
  const [peer] = cluster.peers
  if (command.type === 'close') void cluster.close().then(() => process.exit(0))
  if (peer === undefined) return
  if (command.type === 'post') {
    for (let i = 0; i < command.count; i++) {
      cluster.post(peer, { body: [command.body, i], parts: [new Uint8Array(i % 1000)] })
    }
  }
  if (command.type === 'request') {
    cluster.request(peer, { body: command.ask, parts: [] }, command.limitMs).then(
      ({ body, parts }) =>
        print({ type: 'answered', body, bytes: parts.reduce((sum, part) => sum + part.length, 0) }),
      ({ failure }) => print({ type: 'rejected', failure }),
    )
  }
}

function print(line: Line): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}
