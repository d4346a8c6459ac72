import { afterAll, beforeAll, expect, test } from 'bun:test'
import { join } from 'node:path'
import { CKPT, run, type Scratch, scratch } from '../../../../test/support/process.ts'

let dir: Scratch
beforeAll(() => {
  dir = scratch()
})
afterAll(() => dir.remove())

/** Supervises a shell script that counts its runs in a file and tells the number of runs and the status. */
async function supervised(name: string, script: string) {
  const log = join(dir.path, name)
  const command = ['sh', '-c', `echo run >> ${log}\n${script}`]
  const source = `
    import { supervise } from ${JSON.stringify(join(import.meta.dir, 'supervise.ts'))}
    process.exit(await supervise(${JSON.stringify(command)}))`
  const file = join(dir.path, `${name}.ts`)
  await Bun.write(file, source)
  return { file, runs: async () => (await Bun.file(log).text()).split('\n').length - 1 }
}

test('a lost device (status 4) starts it again, any other status is passed on', async () => {
  const flag = join(dir.path, 'second')
  const { file, runs } = await supervised(
    'again',
    `[ -e ${flag} ] && exit 7; touch ${flag}; exit 4`,
  )
  const { status, stderr } = await run([process.execPath, file])
  expect(status).toBe(7)
  expect(await runs()).toBe(2)
  expect(stderr).toContain('starting the daemon again')
}, 20_000)

test('a device that stays lost is given up', async () => {
  const { file, runs } = await supervised('lost', 'exit 4')
  const { status, stderr } = await run([process.execPath, file])
  expect(status).toBe(4)
  expect(await runs()).toBe(5)
  expect(stderr).toContain('giving up')
}, 30_000)

test('SIGTERM goes on to the daemon and ends the supervision', async () => {
  const ready = join(dir.path, 'ready')
  const { file, runs } = await supervised(
    'term',
    `trap "exit 4" TERM; touch ${ready}; while :; do sleep 0.1; done`,
  )
  const child = Bun.spawn([process.execPath, file], { stdout: 'ignore', stderr: 'ignore' })
  await appears(ready)
  child.kill('SIGTERM')
  expect(await child.exited).toBe(4)
  expect(await runs()).toBe(1)
}, 20_000)

test('SIGTERM between two runs ends the supervision, too', async () => {
  const { file, runs } = await supervised('between', 'exit 4')
  const child = Bun.spawn([process.execPath, file], { stdout: 'ignore', stderr: 'pipe' })
  await toldLost(child.stderr)
  child.kill('SIGTERM')
  expect(await child.exited).toBe(4)
  expect(await runs()).toBe(1)
}, 20_000)

test('Ctrl-C, which the terminal gives to both, ends the daemon in order', async () => {
  const where = ['--uds', join(dir.path, 'ckpt.sock'), '--state-dir', join(dir.path, 'state')]
  const command = [...CKPT, 'serve', '--supervise', '--devices', 'host', ...where]
  // in a process group of its own, as a shell starts it
  const child = Bun.spawn(command, { stdout: 'pipe', stderr: 'ignore', detached: true })
  for await (const chunk of child.stdout) {
    if (new TextDecoder().decode(chunk).includes('ready at')) break
  }
  process.kill(-child.pid, 'SIGINT')
  expect(await child.exited).toBe(0)
}, 60_000)

/** Waits until the supervised script has got as far as to make this file. */
async function appears(path: string): Promise<void> {
  const deadlineMs = performance.now() + 10_000
  while (!(await Bun.file(path).exists())) {
    if (performance.now() > deadlineMs) throw new Error('it did not start')
    await Bun.sleep(20)
  }
}

/** Waits until the supervision says that it starts the daemon again. */
async function toldLost(stderr: ReadableStream<Uint8Array>): Promise<void> {
  let text = ''
  for await (const chunk of stderr) {
    text += new TextDecoder().decode(chunk)
    if (text.includes('starting the daemon again')) return
  }
  throw new Error(`it ended: ${text}`)
}
