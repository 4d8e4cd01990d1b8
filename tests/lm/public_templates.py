"""The essentials of chat templates as public models ship them: control tokens, roles, dates, thinking, parts.

Each is (template, beginning of sequence, end of sequence, whether the tokenizer itself begins texts too).
"""

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou"
    " are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' +"
    " message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=messages|length - 1) %}{%- for message in messages[::-1] %}{%- set index ="
    " (messages|length - 1) - loop.index0 %}{%- if message.role == 'user' and ns.last == messages|length - 1 %}{%- set"
    " ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- if message.role == 'tool' %}{{-"
    " '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}{%- elif"
    " message.role == 'assistant' %}{%- set content = message.content %}{%- set thinking ="
    " message.reasoning_content or '' %}{%- if '</think>' in content %}{%- set thinking ="
    " content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{%- set content ="
    " content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last and (loop.last or thinking)"
    " %}{{- '<|im_start|>assistant\n<think>\n' + thinking + '\n</think>\n\n' + content }}{%- else %}{{-"
    " '<|im_start|>assistant\n' + content }}{%- endif %}{%- if message.tool_calls %}{%- for call in message.tool_calls"
    " %}{{- '\n<tool_call>\n' + (call.function or call)|tojson + '\n</tool_call>' }}{%- endfor %}{%- endif %}{{-"
    " '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%-"
    " endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is"
    " defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string ="
    " strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}{%- if"
    " messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:]"
    " %}{%- else %}{%- set system = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting"
    " Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}{%- for message in"
    " messages %}{%- if message.role == 'tool' or message.role == 'ipython' %}{{-"
    " '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{%- if message.content is mapping or message.content is"
    " iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}{{- '<|eot_id|>' }}{%-"
    " elif 'tool_calls' in message %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' +"
    " message.tool_calls[0].function|tojson + '<|eot_id|>' }}{%- else %}{{- '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}{%- if"
    " add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif"
    " %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{"
    " raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if"
    " (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif"
    " %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if"
    " add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is string -%}\n    "
    "    {%- set first = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n        {%- set first ="
    " messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n    {%- set loop_messages = messages[1:]"
    " -%}\n{%- else -%}\n    {%- set first = '' -%}\n    {%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for"
    " message in loop_messages -%}\n    {%- set role = 'model' if message['role'] == 'assistant' else message['role']"
    " -%}\n    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}\n    {%- if message['content'] is"
    " string -%}\n        {{ message['content'] | trim }}\n    {%- elif message['content'] is iterable -%}\n        {%-"
    " for item in message['content'] -%}\n            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%-"
    " endif -%}\n        {%- endfor -%}\n    {%- endif -%}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if"
    " add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}\n"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set messages = messages[1:]"
    " %}{%- endif %}{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}{%- if loop.last or"
    " (loop.index0 == messages|length - 2) and system is defined %}{{- '[INST] ' + (system + '\n\n' if system is"
    " defined else '') + message.content + '[/INST]' }}{%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{%-"
    " endif %}{%- elif message.role == 'assistant' %}{{- ' ' + message.content|trim + eos_token }}{%- elif message.role"
    " == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}{%- else %}{{- raise_exception('Only"
    " user, assistant and tool roles are supported') }}{%- endif %}{%- endfor %}"
)
PHI4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' +"
    " message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' +"
    " message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'"
    " + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt"
    " %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"
)
DEEPSEEK_R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns ="
    " namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system ="
    " message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for message in messages %}{%- if"
    " message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}{%- if message['role'] =="
    " 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content ="
    " content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif"
    " %}{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
SMOLLM3 = (
    '{%- set today = strftime_now("%d %B %Y") -%}{{- "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June'
    ' 2025\nToday Date: " ~ today ~ "\nReasoning Mode: /no_think\n\n" -}}{%- if messages[0].role == "system" -%}{{-'
    ' messages[0].content.rstrip() + "\n\n" -}}{%- endif -%}{{- "<|im_end|>\n" -}}{%- for message in messages -%}{%- if'
    ' message.role == "user" -%}{{ "<|im_start|>user\n" + message.content + "<|im_end|>\n" }}{%- elif message.role =='
    ' "assistant" -%}{{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + message.content.lstrip("\n") +'
    ' "<|im_end|>\n" }}{%- elif message.role == "tool" -%}{{ "<|im_start|>user\n" + message.content + "<|im_end|>\n"'
    " }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n\n</think>\n'"
    " }}{%- endif -%}"
)
GPT_OSS = (
    "{%- macro system_message() -%}{{- 'You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff:"
    " 2024-06\n' }}{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\n\n' }}{{- '# Valid channels: analysis,"
    " commentary, final.' }}{%- endmacro -%}{{- '<|start|>system<|message|>' }}{{- system_message() }}{{- '<|end|>'"
    " }}{%- if messages[0].role == 'system' or messages[0].role == 'developer' %}{{-"
    " '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}{%- set messages ="
    " messages[1:] %}{%- endif %}{%- for message in messages %}{%- if message.role == 'assistant' %}{%- if loop.last"
    " and not add_generation_prompt %}{%- if 'thinking' in message %}{{-"
    " '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}{{-"
    " '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}{%- else %}{{-"
    " '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- elif message.role"
    " == 'tool' %}{{- '<|start|>functions.tool to=assistant<|channel|>commentary<|message|>' + message.content|tojson +"
    " '<|end|>' }}{%- else %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor"
    " %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] +"
    " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{%"
    " elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif"
    " %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' +"
    " message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{%"
    " elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] +"
    " eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if"
    " loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
LLAVA = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in message['content'] |"
    " selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for content in message['content'] |"
    " selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "qwen2.5": (CHATML, None, "<|im_end|>", False),
    "qwen3": (QWEN3, None, "<|im_end|>", False),
    "llama3.1": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>", True),
    "gemma2": (GEMMA2, "<bos>", "<eos>", True),
    "gemma3": (GEMMA3, "<bos>", "<end_of_turn>", True),
    "mistral": (MISTRAL, "<s>", "</s>", True),
    "phi4": (PHI4, None, "<|im_end|>", False),
    "deepseek-r1": (DEEPSEEK_R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", True),
    "smollm3": (SMOLLM3, None, "<|im_end|>", False),
    "gpt-oss": (GPT_OSS, "<|startoftext|>", "<|return|>", False),
    "zephyr": (ZEPHYR, "<s>", "</s>", True),
    "olmo2": (OLMO2, "<|endoftext|>", "<|endoftext|>", False),
    "llava": (LLAVA, None, "<|im_end|>", False),
}
