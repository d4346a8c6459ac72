import { expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

setDefaultTimeout(60_000)

const MAIN = join(import.meta.dir, 'main.ts')

/** A daemon as npx runs it, below a shell; then the shell is killed. Whether the daemon is still there after a while. */
async function outlivesItsShell(script: string): Promise<boolean> {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-npx-'))
  const socket = join(dir, 'ckpt.sock')
  const serve = `'${process.execPath}' '${MAIN}' serve --uds '${socket}' --devices host --json`
  const env = {
    ...process.env,
    XDG_STATE_HOME: dir,
    npm_command: 'exec',
    npm_lifecycle_script: script,
  }
  const shell = Bun.spawn(['sh', '-c', `${serve}; true`], { env, stderr: 'ignore' })
  let text = ''
  for await (const chunk of shell.stdout) {
    text += new TextDecoder().decode(chunk)
    if (text.includes('\n')) break
  }
  const { pid } = JSON.parse(text) as { pid: number }
  shell.kill('SIGKILL')
  await shell.exited
  for (let tries = 0; tries < 50 && existsSync(socket); tries++) await Bun.sleep(100)
  const there = existsSync(socket)
  if (there) process.kill(pid, 'SIGTERM')
  while (existsSync(socket)) await Bun.sleep(50)
  rmSync(dir, { recursive: true, force: true })
  return there
}

test('a daemon that npx runs ends with npx', async () => {
  expect(await outlivesItsShell("'ckpt'")).toBe(false)
})

test('one that another tool has started stays', async () => {
  expect(await outlivesItsShell("'trainer'")).toBe(true)
})
