import { expect, test } from 'bun:test'
import { directObstacle } from './direct-obstacle.ts'

const engine = (notDirect: string | null | undefined, ...ranks: number[]) => ({
  spec: { url: 'http://engine', ranks },
  record: { notDirect },
})
const unsaid =
  'http://engine has taken no update of this daemon with ckpt_worker yet: send one without mode direct first'

test.each([
  ['auto', [engine(null, 0, 1)], 'host', null],
  ['direct', [engine(null, 0), engine(null, 1)], 'cuda', null],
  // not run on a GPU yet
  ['auto', [engine(null, 0, 1)], 'cuda', { told: null }],
  ['auto', [engine(undefined, 0, 1)], 'host', { told: null }],
  ['direct', [engine(undefined, 0, 1)], 'host', { told: unsaid }],
  ['auto', [engine(null, 0), engine('it sleeps', 1)], 'host', { told: 'it sleeps' }],
  ['auto', [engine(null, 0)], 'host', { told: null }],
  ['direct', [engine(null, 0)], 'host', { told: 'no engine is contacted for rank 1' }],
  ['pipelined', [engine(null, 0, 1)], 'host', { told: null }],
  ['serial', [engine(null, 0, 1)], 'host', { told: null }],
] as const)('%s of %j on %s', (mode, engines, library, wanted) => {
  expect(directObstacle({ mode, ranks: [0, 1] }, engines, library)).toEqual(wanted)
})
