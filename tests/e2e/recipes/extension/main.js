// Answers each request with who it is: in its own process, as extensions ask, or in a terminal of the editor.
const fs = require('fs'), http = require('http'), path = require('path'), vscode = require('vscode');
const home = name => path.join(process.env.HOME, name);

// Runs a line in a new terminal, and resolves to what it printed.
const inTerminal = line => new Promise(resolve => {
  const terminal = vscode.window.createTerminal();
  terminal.sendText(`${line} > ~/part 2>&1; mv ~/part ~/whole`);
  const timer = setInterval(() => {
    if (!fs.existsSync(home('whole'))) return;
    clearInterval(timer);
    resolve(fs.readFileSync(home('whole'), 'utf8').trim().split('\n').pop());
    fs.unlinkSync(home('whole'));
    terminal.dispose();
  }, 50);
});

const inExtension = async () => {
  const {STSClient, GetCallerIdentityCommand} = require(process.env.TEST_SDK);
  return (await new STSClient().send(new GetCallerIdentityCommand())).Arn;
};

const answers = {
  '/version': async () => vscode.version,
  '/extension': inExtension,
  '/terminal': () => inTerminal('$TEST_PYTHON ~/who.py'),
};

exports.activate = () => http.createServer((request, response) =>
  answers[request.url]().catch(error => 'failed: ' + error.message).then(text => response.end(text + '\n'))
).listen(4568, '127.0.0.1');
